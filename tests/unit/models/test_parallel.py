import threading

import pytest
import torch

from spot_ray.models.parallel import in_parallel


@pytest.fixture
def _two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_two_threads")
def test_threads_share_out_the_work_and_record_no_gradient() -> None:
    seen: list[tuple[str, int, bool]] = []
    weight = torch.ones((), requires_grad=True)

    def work(items):
        seen.append((threading.current_thread().name, torch.get_num_threads(), (weight * 2).requires_grad))
        return list(items)

    assert in_parallel(work, range(5)) == [[0, 2, 4], [1, 3]]
    assert all(name.startswith("torch-kernels") and threads == 1 and not grad for name, threads, grad in seen)
    assert torch.get_num_threads() == 2
    # Elsewhere kernels are split as before, in threads to come too.
    other: list[int] = []
    thread = threading.Thread(target=lambda: other.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert other == [2]
    assert in_parallel(work, [7]) == [[7]]
    assert in_parallel(work, []) == [[]]


@pytest.mark.usefixtures("_two_threads")
def test_results_may_be_written_in_inference_mode() -> None:
    with torch.inference_mode():
        result = torch.zeros(4)

        def work(items):
            for i in items:
                result[i] = i

        in_parallel(work, range(4))
        assert result.tolist() == [0, 1, 2, 3]


@pytest.mark.usefixtures("_two_threads")
def test_an_error_in_a_thread_arrives() -> None:
    def work(items):
        raise ValueError(f"at {list(items)}")

    with pytest.raises(ValueError, match="at"):
        in_parallel(work, range(2))
