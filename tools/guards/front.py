"""HTTP, for browsers and curl."""

from guard import Guard

GUARDS = [
    Guard(
        "http: JSON may not grow into more than a request may be",
        "tests/e2e/test_http.py::test_json_may_not_grow_into_more_than_the_limit",
        "luthier/web/upstream.py",
        "        if len(message) > self._max_request_bytes:\n",
        "        if False:\n",
    ),
    Guard(
        "http: what is decompressed has the limit of a request",
        "tests/e2e/test_http.py::test_a_bomb_of_gzip_is_refused_before_it_is_whole",
        "luthier/web/bodies.py",
        "            found = inflating.decompress(body, most + 1)\n",
        "            found = inflating.decompress(body)\n",
    ),
    Guard(
        "http: a request that does not come is not waited for",
        "tests/e2e/test_http.py::test_who_sends_no_request_is_not_waited_for",
        "luthier/web/listener.py",
        "            self._head = self.loop.call_later(HEAD_S, self._close_late)\n",
        "            pass\n",
    ),
    Guard(
        "http: a page of another origin is refused",
        "tests/e2e/test_http.py::test_a_page_of_another_origin_may_not_call",
        "luthier/web/application.py",
        '        if origin is not None and "*" not in self._origins and origin not in self._origins:\n',
        "        if False:\n",
    ),
    Guard(
        "http: who has gone is not worked for",
        "tests/e2e/test_http.py::test_a_call_whose_caller_goes_is_cancelled",
        "luthier/web/work.py",
        "    gone.add_done_callback(lambda done: done.cancelled() or call.cancel())\n",
        "",
    ),
    Guard(
        "http: a front that died is started again",
        "tests/e2e/test_http.py::test_a_front_that_dies_is_replaced",
        "luthier/front.py",
        "                self._process = self._spawn(self._socket)\n",
        "                return\n",
    ),
    Guard(
        "http: a port that others reach wants TLS and tokens",
        "tests/e2e/test_http.py::test_others_are_let_in_by_tls_and_tokens_alone",
        "luthier/settings.py",
        ', ("--http-listen", self.http_listen)):\n',
        ",):\n",
    ),
    Guard(
        "http: callers do not say themselves where they come from",
        "tests/security/test_callers.py::test_who_calls_over_http_is_known_by_their_own_address",
        "luthier/services/callers.py",
        '    if not peer.startswith("unix:"):\n',
        "    if PEER not in dict(context.invocation_metadata()):\n",
    ),
]
