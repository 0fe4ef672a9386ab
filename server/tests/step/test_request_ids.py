"""Ids of requests in log lines."""

from gridwork_server.step.request_ids import RequestIds

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_a_line_about_one_request_names_it_and_its_trace() -> None:
    ids = RequestIds()
    ids.admit(3, "a", TRACE)
    ids.admit(4, "b", "")
    assert ids.fields([3]) == {"request_id": "a", "trace_id": "0af7651916cd43dd8448eb211c80319c"}
    assert ids.fields([4]) == {"request_id": "b"}
    assert ids.fields([3, 4]) == {"request_ids": "a,b", "trace_id": "0af7651916cd43dd8448eb211c80319c"}


def test_sequences_of_one_request_name_it_once_and_long_lists_are_cut() -> None:
    ids = RequestIds()
    for sequence_id in range(20):
        ids.admit(sequence_id, f"r{sequence_id // 2}", "nonsense")
    assert ids.fields([0, 1]) == {"request_id": "r0"}
    assert ids.fields(range(20)) == {"request_ids": "r0,r1,r2,r3"}
    ids.release(range(20))
    assert ids.fields([0]) == {}
