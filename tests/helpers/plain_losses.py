"""The two losses from their formulas, in float64."""

from __future__ import annotations

import numpy as np
from helpers.plain_layers import sigmoid


def dice(p, q, epsilon=1e-3):
    """Equations 3.3 and 3.4, `epsilon` added to each of the squared sums."""
    p, q = np.asarray(p, np.float64).ravel(), np.asarray(q, np.float64).ravel()
    overlap = sum(a * b for a, b in zip(p, q, strict=True))
    return 1 - 2 * overlap / (sum(p**2) + epsilon + sum(q**2) + epsilon)


def focal(logit, is_positive, alpha=0.25, gamma=2.0):
    """Lin et al. 2017, equation 5: -alpha_t (1 - p_t)^gamma log(p_t)."""
    sign = 1.0 if is_positive else -1.0
    log_p_t = -np.logaddexp(0.0, -sign * logit)
    alpha_t = alpha if is_positive else 1 - alpha
    return -alpha_t * sigmoid(-sign * logit) ** gamma * log_p_t
