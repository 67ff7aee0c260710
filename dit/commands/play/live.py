"""Images while they form: the data that the network predicts, decoded every few steps."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from queue import SimpleQueue

import torch
from torch import Tensor

from dit.diffusion.process import Prediction
from dit.sampling.edit import Edit
from dit.sampling.pipeline import SamplingPipeline

PREVIEWS = 8  # of a batch
THREAD = "dit-play"  # name of the thread that samples
EMPTY = 235  # gray level of an image that has not begun


class Stopped(Exception):
    """Ends sampling in its thread when nobody waits for the images."""


@dataclass
class Forming:
    """The images of an edit as far as they are known.

    Attributes:
        images: uint8 [N, 3, H, W]; those of finished batches are predictions of the last call.
        begun: images of the batches that have begun.
        calls: of the denoiser for the present batch.
        stop: set when nobody waits any longer.
    """

    edit: Edit
    images: Tensor
    begun: int = 0
    calls: int = 0
    stop: threading.Event = field(default_factory=threading.Event)

    def watch(self, pipeline: SamplingPipeline, show: Callable[[], object]) -> SamplingPipeline:
        """Return a pipeline that decodes some of its predictions, and calls `show` after each."""
        every = max(1, pipeline.calls // PREVIEWS)
        autoencoder = pipeline.run.autoencoder
        self.calls = pipeline.calls

        def watched(x_t: Tensor, t: Tensor, y: Tensor) -> Prediction:
            if self.stop.is_set():
                raise Stopped
            prediction = pipeline.denoise(x_t, t, y)
            if self.calls == pipeline.calls:
                self.begun, self.calls = self.begun + len(x_t), 0
            self.calls += 1
            if self.calls % every == 0:
                # not in the precision of the network
                with torch.autocast(x_t.device.type, enabled=False):
                    images = autoencoder.decode(prediction.x0).cpu()
                self.images[self.begun - len(x_t) : self.begun] = self.edit.finish(images)
                show()
            return prediction

        return replace(pipeline, denoise=watched)


def while_forming(edit: Edit) -> Iterator[tuple[Tensor, bool]]:
    """Yield the images uint8 [N, 3, H, W] as they form, and at last the results; whether they are.

    Sampling runs in a thread, which ends soon after this iterator is closed.
    """
    pipeline = edit.requests[0].pipeline
    count = sum(len(request.labels) for request in edit.requests)
    empty = torch.full((count, 3, *pipeline.run.image_size), EMPTY, dtype=torch.uint8)
    forming = Forming(edit, empty)
    news: SimpleQueue[tuple[Tensor, bool] | BaseException] = SimpleQueue()

    def show() -> None:
        news.put((forming.images.clone(), False))

    def work() -> None:
        try:
            news.put((edit.generate(lambda pipeline: forming.watch(pipeline, show)), True))
        except BaseException as error:  # raised again where the images are awaited
            news.put(error)

    thread = threading.Thread(target=work, name=THREAD, daemon=True)
    thread.start()
    done = False
    try:
        while not done:
            item = news.get()
            if isinstance(item, BaseException):
                raise item
            yield item
            done = item[1]
    finally:
        forming.stop.set()
        thread.join()
