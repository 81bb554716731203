"""The RL-specific operations of the training loop: transition, log-prob, losses, similarities.

One form serves every sampler. With `m` the model's output and `x` the latent,

    mean = a x + b m,   predicted clean = c x + d m,   next = mean + sigma z,   z ~ N(0, 1)

and a row `(a, b, c, d, sigma)` of float32 coefficients per sample. Latents have shape [N, ...] or [P, 2, ...] with any
trailing shape, contiguous within a sample. Log-probs are means over a latent's elements, not sums.

Each operation has a PyTorch reference and a Triton kernel. It is a `torch.library` operation, so torch.compile,
autograd and CUDA graphs treat it as one. `backend` chooses the implementation; by default CUDA tensors use Triton. The
package needs only torch, and triton for CUDA tensors.
"""

from sdpo_kernels import coefficients
from sdpo_kernels._backend import BACKENDS, backend, resolve_backend
from sdpo_kernels.losses import SDPOLoss, ppo_clip_loss, ppo_clip_loss_and_grad, sdpo_loss, sdpo_loss_and_grad
from sdpo_kernels.philox import normal
from sdpo_kernels.similarity import AnchorSimilarity, anchor_similarity
from sdpo_kernels.transition import DDIMStep, ddim_step, gaussian_log_prob

__all__ = [
    "BACKENDS",
    "AnchorSimilarity",
    "DDIMStep",
    "SDPOLoss",
    "anchor_similarity",
    "backend",
    "coefficients",
    "ddim_step",
    "gaussian_log_prob",
    "normal",
    "ppo_clip_loss",
    "ppo_clip_loss_and_grad",
    "resolve_backend",
    "sdpo_loss",
    "sdpo_loss_and_grad",
]
