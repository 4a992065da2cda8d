import pytest

from luthier.redaction import Redaction

ENVIRONMENT = {
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG",
    "HF_TOKEN": "hf_abcdefgh",
    "LUTHIER_DATABASE_URL": "postgresql+psycopg://luthier:tide%2Dpool@db/luthier",
    "AWS_WEB_IDENTITY_TOKEN_FILE": "/var/run/secrets/token",
    "TOKEN": "no",
    "HOME": "/home/luthier",
}
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbm5hIn0.dGhlIHNpZ25hdHVyZQ"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sent wJalrXUtnFEMI/K7MDENG twice: wJalrXUtnFEMI/K7MDENG", "sent *** twice: ***"),
        ("hub: hf_abcdefgh.", "hub: ***."),
        ("the password tide%2Dpool, or tide-pool", "the password ***, or ***"),
        ("https://ann:hunter22@host/simple and http://h/x", "https://ann:***@host/simple and http://h/x"),
        ("Authorization: Bearer 0123456789abcdef01", "Authorization: Bearer ***"),
        (f"token={JWT}", "token=***"),
        ("a bearer of news /var/run/secrets/token", "a bearer of news /var/run/secrets/token"),
        ("s3://bucket/a:b@c", "s3://bucket/a:b@c"),
    ],
)  # fmt: skip
def test_secrets_are_stars(text: str, said: str) -> None:
    assert Redaction(ENVIRONMENT)(text) == said


def test_the_password_of_a_setting_is_learnt() -> None:
    redact = Redaction({})
    assert redact("the tide-pool") == "the tide-pool"
    redact.learn("postgresql://luthier:tide-pool@db/luthier")
    assert redact("the tide-pool") == "the ***"
