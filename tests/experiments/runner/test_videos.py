"""What stands in the pictures of a video; whole videos are filmed in test_locomotion."""

import numpy as np
import pytest

from metarl.experiments.runner.videos import captioned

BAR = 332  # a row of the ruler's bar
WITHOUT_BAR = (30, 30, 30)


@pytest.mark.parametrize(("distance", "first", "last"), [(2.0, 120, 240), (-1.5, 240, 330), (9.0, 0, 240)])
def test_a_bar_leads_from_the_start_to_the_body_in_the_middle(distance, first, last):
    frame = captioned(np.zeros((360, 480, 3), np.uint8), "", distance)
    marked = np.flatnonzero((frame[BAR] != WITHOUT_BAR).any(axis=-1) & (frame[BAR] < 245).any(axis=-1))
    assert (marked.min(), marked.max()) == (pytest.approx(first, abs=1), pytest.approx(last, abs=1))


def test_text_stands_at_the_top_and_the_rest_is_as_it_was():
    frame = np.random.default_rng(0).integers(0, 256, (360, 480, 3), dtype=np.uint8)
    shown, other = (captioned(frame, text, None) for text in ("velocity 1.7", "velocity 1.8"))
    assert (shown[:25] != other[:25]).any()
    assert (shown[25:] == frame[25:]).all()
