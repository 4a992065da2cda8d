"""Who calls, and what they may do.

A call passes four questions in this order: who is it (`gate`), may its role call the method, may it name the resources
that the request names (`policy`), and is some of its quota left (`quotas`). What changes something is written down
(`audit`). Everything that a plugin needs to answer the first question itself is here.
"""

from luthier.access.principal import UNLIMITED, Credentials, Limits, Principal, Role, Scope

__all__ = ["UNLIMITED", "Credentials", "Limits", "Principal", "Role", "Scope"]
