import numpy as np

from broker_pipeline.messages.activation import VisualSpan
from broker_pipeline.messages.sampling import SamplingSettings
from broker_pipeline.scheduling.kv_ledger import SessionKey
from broker_pipeline.scheduling.routes import Route
from broker_pipeline.scheduling.session_state import PreparedPrompt, SessionState


def session() -> SessionState:
    positions = np.arange(18, dtype=np.int32).reshape(3, 6)
    prompt = PreparedPrompt(
        np.arange(10, 16, dtype=np.int32),
        positions,
        position_delta=-3,
        visual=(VisualSpan(offset=1, count=3, row=0), VisualSpan(offset=5, count=1, row=3)),
    )
    return SessionState(SessionKey("s", 1), 0, Route(()), prompt, SamplingSettings(), 20, generated=[90, 91, 92])


def test_tokens_run_on_from_prompt_to_output() -> None:
    state = session()
    assert state.num_tokens == 9
    assert state.token_ids(0, 4).tolist() == [10, 11, 12, 13]
    assert state.token_ids(4, 8).tolist() == [14, 15, 90, 91]
    assert state.token_ids(8, 9).tolist() == [92]
    assert all(state.token_ids(start, 9).dtype == np.int32 for start in (0, 6, 8))


def test_positions_of_output_are_index_plus_delta_on_all_axes() -> None:
    state = session()
    assert state.positions(4, 8).tolist() == [[4, 5, 3, 4], [10, 11, 3, 4], [16, 17, 3, 4]]
    assert state.positions(8, 9).tolist() == [[5], [5], [5]]
    assert state.positions(0, 2).tolist() == [[0, 1], [6, 7], [12, 13]]
    assert state.positions(4, 8).dtype == np.int32


def test_visual_spans_are_cut_to_the_chunk() -> None:
    state = session()
    assert state.visual_spans(0, 9) == state.prompt.visual
    assert state.visual_spans(2, 6) == (VisualSpan(offset=0, count=2, row=1), VisualSpan(offset=3, count=1, row=3))
    assert state.visual_spans(4, 5) == ()
    assert state.prompt.num_visual_tokens == 4
