"""What the page shows, and how those who watch come to know of it."""

import json

from modeling_cnnrnn.live.board import Board, Seen, to_json


def test_a_watcher_is_sent_each_thing_once():
    board, seen = Board(), Seen()
    board.put(status="training", layers=[1, 2])
    board.add_point({"step": 1, "loss": 2.0})
    first = json.loads(board.news(seen))
    assert first == {
        "status": "training",
        "layers": [1, 2],
        "points": {"first": 0, "points": [{"step": 1, "loss": 2.0}]},
    }
    board.put(status="training", layers=[3])
    board.add_point({"step": 2, "loss": 1.5})
    assert json.loads(board.news(seen)) == {
        "layers": [3],
        "points": {"first": 1, "points": [{"step": 2, "loss": 1.5}]},
    }
    assert board.news(seen) is None


def test_curves_that_begin_again_replace_those_that_were_sent():
    board, seen = Board(), Seen()
    board.add_point({"step": 1})
    board.add_point({"step": 2})
    board.news(seen)
    board.set_points([{"step": 1}])
    assert json.loads(board.news(seen)) == {"points": {"first": 0, "points": [{"step": 1}]}}


def test_one_who_comes_late_is_sent_all():
    board = Board()
    for step in range(3):
        board.add_point({"step": step})
        board.put(step=step)
    found = json.loads(board.snapshot())
    assert found["step"] == 2
    assert len(found["points"]["points"]) == 3


def test_numbers_that_browsers_do_not_know_are_left_out():
    assert to_json({"loss": float("nan"), "rows": [1.0, float("inf")]}) == '{"loss": null, "rows": [1.0, null]}'
