"""Makes the database of objects that ground-truth sampling pastes, of the frames that a run trains on and no others."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from queue import SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from spot_ray.errors import DataError, StoreError
from spot_ray.geometry.boxes import points_of_boxes
from spot_ray.operators.chain import Chain, build_chain, point_columns
from spot_ray.operators.config import DataConfig, GtSamplingConfig
from spot_ray.operators.gt_objects import OBJECTS, TIME_LAG, GtObject, column_dtype, objects_schema, to_batch
from spot_ray.operators.gt_origin import Made, check_made_of, made_of, read_marker, write_marker
from spot_ray.operators.gt_sampling import class_ids_of
from spot_ray.operators.mixture import Mixture, box_taxonomies, class_ids, common_grid
from spot_ray.operators.plan import Share, check_annotated, select_frames
from spot_ray.operators.read import locate, slots
from spot_ray.operators.sample import Sample, Slot
from spot_ray.schema.sweep import POINT_DTYPES
from spot_ray.storage import uri as uris
from spot_ray.storage.codec import EXTRA
from spot_ray.storage.patience import try_patiently
from spot_ray.storage.shards import ShardReader
from spot_ray.storage.whole_file import WholeFile

_BATCH_BYTES = 16 << 20
"""Points of objects that lie in memory until they are written together."""
_FRAMES_AT_ONCE = 32
"""Frames that a thread works on at a time, of one shard for the most part: up to some 30 MB of objects."""
_THREADS = 8
_DIFFICULTY = "box_difficulty"


def build_gt_database(
    mixture: Mixture, config: DataConfig, uri: str, *, on_progress: Callable[[int, int], None] | None = None
) -> None:
    """Cut the objects to paste out of the frames that a run trains on.

    Frames go through the run's own operators as far as its camera's view, with seed 0, so that objects have the columns
    and the density of the run's points. An object's points are those in its box. Left out are objects with fewer points
    than `gt_sampling.min_points` asks for, and those with a difficulty below 0: their source could not grade them
    (OpenPCDet's `filter_by_difficulty`, KITTI).

    A database that is there already, whole and of the same frames and settings, stays as it is.

    Args:
        mixture: The datasets, with their subsets: nothing else is looked at.
        config: The data plane of the run; its `on_bad_frame` and `max_skipped` hold here too.
        uri: Folder to write to.
        on_progress: Called with the number of frames that are done, and of all.

    Raises:
        ConfigError: If the classes are none of the data's, or the folder holds a database of other frames or settings.
        DataError: If a frame cannot be read, or too many cannot; or the folder is not to be written to.
    """
    ids = class_ids_of(config, mixture)
    of = made_of(mixture, config)
    made = read_marker(uri)
    if made is not None:
        check_made_of(made, of, uri)
        return
    uris.check_writable(uris.join(uri, OBJECTS))
    recorded = replace(config, gt_sampling=GtSamplingConfig())
    chain = build_chain(mixture, recorded, common_grid(mixture), seed=0, epoch=0, frame_columns=(_DIFFICULTY,))
    share = _share(mixture, config)
    places = locate(share, mixture, merge=config.merge, deskew=config.deskew)
    numbers = _numbers(mixture, ids)
    dtypes = _dtypes(mixture, config)
    content = hashlib.blake2b(digest_size=16)
    counts, skipped = [0] * len(ids), dict[str, str]()

    def cut_frame(sample: Sample) -> list[GtObject]:
        return list(cut(sample, numbers[sample.slot.dataset], config.gt_sampling.min_points, tuple(dtypes)))

    with (
        _writing(uris.join(uri, OBJECTS), objects_schema(dtypes), content.update) as write,
        closing(_cut_all(chain, places, cut_frame)) as frames,
    ):
        for done, (slot, found) in enumerate(frames, start=1):
            if isinstance(found, DataError):
                skipped[slot.frame] = str(found)
                if len(skipped) > config.max_skipped * len(share):
                    raise DataError(
                        f"{len(skipped)} of {len(share)} frames cannot be read",
                        where=chain.datasets[slot.dataset].uri,
                        expected=f"at most the share data.max_skipped={config.max_skipped:g}",
                        remedy=f"see what is wrong; the last is {found}",
                    )
            else:
                for one in found:
                    counts[one.class_number] += 1
                    write(one)
            if on_progress is not None:
                on_progress(done, len(share))
    names = dict(zip(config.gt_sampling.classes, counts, strict=True))
    write_marker(uri, Made(of, content.hexdigest(), len(share), names, skipped))


def cut(
    sample: Sample, number_of_source: npt.NDArray[np.int16], min_points: Sequence[int], columns: Sequence[str]
) -> Iterator[GtObject]:
    """Iterate over the objects of a frame that are to be pasted into others.

    Args:
        sample: The frame, its sweeps merged.
        number_of_source: (65536,) int16 from source ids of boxes to the place of their class among those to paste; -1:
            it is none of them.
        min_points: Least points of an object of each of these classes.
        columns: The point columns to keep, where the frame has them.
    """
    sweep, boxes = sample.sweep, sample.sweep.boxes
    if boxes is None or not len(boxes):
        return
    number = number_of_source[boxes.source_class]
    index, count = points_of_boxes(sweep.xyz, boxes.boxes)
    ends = np.cumsum(count)
    values: dict[str, npt.NDArray[Any] | None] = {
        "xyz": sweep.xyz,
        TIME_LAG: sample.time_lag_s,
        **{name: getattr(sweep, name) for name in POINT_DTYPES},
        **{EXTRA + name: own for name, own in sweep.extra.items()},
    }
    for m in np.flatnonzero(number >= 0).tolist():
        difficulty = None if boxes.difficulty is None else int(boxes.difficulty[m])
        if count[m] < min_points[number[m]] or (difficulty is not None and difficulty < 0):
            continue
        own = index[ends[m] - count[m] : ends[m]]
        yield GtObject(
            dataset=sample.slot.dataset,
            class_number=int(number[m]),
            source_class=int(boxes.source_class[m]),
            frame=sample.slot.frame,
            box=boxes.boxes[m],
            velocity=None if boxes.velocity is None else boxes.velocity[m],
            difficulty=difficulty,
            points={name: column[own] for name in columns if (column := values.get(name)) is not None},
        )


def _share(mixture: Mixture, config: DataConfig) -> Share:
    """Return the frames that the run trains on, each once, in the datasets' order."""
    frames = []
    for member in mixture.members:
        own = select_frames(member.dataset, member.subset, config.frames)
        check_annotated(member.dataset, own)
        frames.append(own + member.first)
    frame = np.concatenate(frames)
    once = np.ones(len(frame), np.float32)
    return Share(1, frame, np.zeros(len(frame), np.int32), once, np.arange(len(frame), dtype=np.int32), once)


def _numbers(mixture: Mixture, ids: Sequence[int]) -> list[npt.NDArray[np.int16]]:
    """Return, for each dataset, the table of :func:`cut` from source ids to the place of the class in `ids`."""
    number_of_class = np.full(256, -1, np.int16)
    number_of_class[list(ids)] = np.arange(len(ids))
    united, own = box_taxonomies(mixture, "detection")
    return [number_of_class[class_ids(taxonomy, united)[taxonomy.lookup()]] for taxonomy in own]


def _dtypes(mixture: Mixture, config: DataConfig) -> dict[str, np.dtype[Any]]:
    """Return the dtype of each point column that the operators need of any dataset."""
    result: dict[str, np.dtype[Any]] = {}
    lag = (TIME_LAG,) if config.merge.num_sweeps > 1 else ()
    for info in (member.dataset.info for member in mixture.members):
        for name in ("xyz", *point_columns(config, info), *lag):
            dtype = column_dtype(name, info.extra)
            result[name] = np.result_type(result.get(name, dtype), dtype)
    return result


def _cut_all(
    chain: Chain, places: pa.Table, cut_frame: Callable[[Sample], list[GtObject]]
) -> Generator[tuple[Slot, list[GtObject] | DataError], None, None]:
    """Iterate over the objects of the frames of some places, in order, or what is wrong with those to be left out.

    Threads read ahead: what they do runs outside of Python's lock for the most part, and a store answers several.

    Raises:
        DataError: If a frame cannot be read and is not to be left out, or the store fails.
    """
    free: SimpleQueue[list[ShardReader]] = SimpleQueue()
    with ExitStack() as stack:
        for _ in range(_THREADS):
            readers = [ShardReader(one.uri) for one in chain.datasets]
            for reader in readers:
                stack.callback(reader.close)
            free.put(readers)

        def work(start: int) -> list[tuple[Slot, list[GtObject] | DataError]]:
            readers = free.get()
            try:
                result: list[tuple[Slot, list[GtObject] | DataError]] = []
                for slot in slots(places.slice(start, _FRAMES_AT_ONCE)):
                    found = _frame(chain, slot, readers[slot.dataset])
                    result.append((slot, found if isinstance(found, DataError) else cut_frame(found)))
                return result
            finally:
                free.put(readers)

        pool = ThreadPoolExecutor(_THREADS)
        stack.callback(pool.shutdown, cancel_futures=True)
        running: deque[Future[list[tuple[Slot, list[GtObject] | DataError]]]] = deque()
        for start in range(0, places.num_rows, _FRAMES_AT_ONCE):
            running.append(pool.submit(work, start))
            if len(running) > _THREADS:
                yield from running.popleft().result()
        while running:
            yield from running.popleft().result()


def _frame(chain: Chain, slot: Slot, reader: ShardReader) -> Sample | DataError:
    own = chain.datasets[slot.dataset]

    def attempt() -> Sample | DataError:
        try:
            return own.frame(slot, reader)
        except StoreError:
            raise  # nothing is wrong with the frame
        except DataError as error:
            return error

    found = try_patiently(attempt, doing=f"read frame {slot.frame} of", where=own.uri)
    if isinstance(found, DataError) and chain.on_bad_frame == "fail":
        raise found.with_remedies("or leave such frames out: data.on_bad_frame=skip")
    return found


@contextmanager
def _writing(
    uri: str, schema: pa.Schema, on_content: Callable[[pa.Buffer], None]
) -> Iterator[Callable[[GtObject], None]]:
    """Yield what writes an object to a file, which appears at the end of the block; if that fails, nothing does.

    Args:
        uri: The file.
        schema: Of its rows.
        on_content: Called with what is written, batch by batch.
    """
    file = WholeFile(uri)
    waiting: list[GtObject] = []
    size = 0
    try:
        writer = pa.ipc.new_file(file.stream, schema)

        def flush() -> None:
            nonlocal size
            if waiting:
                batch = to_batch(waiting, schema)
                on_content(batch.serialize())
                with uris.refusals_told("write the file", uri):
                    writer.write_batch(batch)
            waiting.clear()
            size = 0

        def write(one: GtObject) -> None:
            nonlocal size
            waiting.append(one)
            size += sum(values.nbytes for values in one.points.values())
            if size >= _BATCH_BYTES:
                flush()

        yield write
        flush()
        with uris.refusals_told("write the file", uri):
            writer.close()
    except BaseException:
        file.discard()
        raise
    file.commit()
