"""One embedding per frame from an upstream: what benchmarks take that know nothing of layers.

B batch, S samples, T frames, D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.errors import SpeechsslError
from speechssl.featurizer.weighted_sum import WeightedSum
from speechssl.loading import load_upstream

LAYERS = "#layers="
"""Between an upstream and the layers that are meant, as in 'hubert_base#layers=6'."""


class FrameEmbedder(nn.Module):
    """Whole waveforms in, the chosen layer or the mean of the chosen layers out.

    Several layers are first brought to zero mean and unit variance over D at each frame: in models with norms before
    their blocks later layers are many times larger, and a plain mean would be little more than the last of them. A
    single layer is left as it is.
    """

    def __init__(self, reference: str) -> None:
        """
        Args:
            reference: whatever `speechssl.load_upstream` takes, and after '#layers=' the hidden states, such as
                'hubert_base#layers=6' or 'exp/upstream#layers=6,9'; without, all of them. That is the default since a
                benchmark asks for everything from phones to speakers, and no layer holds all of it (Pasad et al. 2021,
                arXiv:2107.04734); what a task needs is best chosen on its dev set.

        Raises:
            SpeechsslError: layers that are no numbers, that the upstream lacks, or of different widths.
        """
        super().__init__()
        name, separator, text = reference.partition(LAYERS)
        layers = _layers(text, reference) if separator else None
        self.upstream = load_upstream(name)
        self.layers = sorted(self.upstream.resolve_layers(layers))
        widths = {self.upstream.hidden_sizes[layer] for layer in self.layers}
        if len(widths) > 1:
            raise SpeechsslError(
                f"The layers of '{name}' have different widths ({sorted(widths)}): choose one, as in '{name}{LAYERS}1'."
            )
        self.width = widths.pop()
        self.mean = WeightedSum(len(self.layers), self.width, normalize=len(self.layers) > 1)
        self.shortest = self._fewest_samples()
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, waveform: Tensor) -> Tensor:
        """Embeds.

        Args:
            waveform: (B, S) in [-1, 1] at the upstream's sample rate; what is shorter than one frame is padded.

        Returns:
            (B, T, D) float32.
        """
        waveform = F.pad(waveform, (0, max(0, self.shortest - waveform.size(1))))
        states = self.upstream(waveform.float(), layers=self.layers).hidden_states
        return self.mean(states).float()  # type: ignore[no-any-return]  # nn.Module returns Any

    def first_centre(self) -> float:
        """Seconds from the beginning to the middle of what the first frame hears."""
        return self.shortest / 2 / self.upstream.sample_rate

    def _fewest_samples(self) -> int:
        """Samples of one frame."""
        low, high = 0, 1
        while int(self.upstream.output_lengths(torch.tensor([high]))) < 1:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            enough = int(self.upstream.output_lengths(torch.tensor([middle]))) >= 1
            low, high = (low, middle) if enough else (middle, high)
        return high


def _layers(text: str, reference: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise SpeechsslError(
            f"The layers of '{reference}' must be numbers, as in '{reference.partition(LAYERS)[0]}{LAYERS}6,9'."
        ) from None
