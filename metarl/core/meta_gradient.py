"""How meta-parameters learn from adapted parameters: MAML's meta-gradient, the multi-step loss, and Reptile.

    path phi_0 ... phi_S  =  adaptation_path(loss, rule, theta, supports)
    MAML                     sum_s w_s J_s' dL_query(phi_s) / dphi_s,   J_s = d phi_s / d theta
    Reptile                  theta - phi_S

Shapes: theta and phi are dicts of tensors with a leading axis of M tasks; so are the gradients, one of each task.
"""

from collections.abc import Mapping, Sequence

import torch

from metarl.core.parameters import Parameters


def pull_back(path: Sequence[Parameters], theta: Parameters, cotangents: Mapping[int, Parameters]) -> Parameters:
    """Return the gradient in theta of sum_s <c_s, phi_s(theta)>, for each task (Finn et al. 2017).

    With c_s = w_s dL_query(phi_s) / dphi_s it is the meta-gradient of sum_s w_s L_query(phi_s). The losses may be
    differentiated apart from the inner loop, at values of phi_s without a graph, for fewer tasks at a time.

    Args:
        path: phi_0 ... phi_S, as functions of theta.
        theta: (M, ...) tensors that require gradients.
        cotangents: c_s by number of the inner step s; those of other steps count as 0.

    Returns:
        (M, ...) tensors named as theta, 0 where the path does not depend on them.
    """
    outputs = [value for step in cotangents for value in path[step].values()]
    weights = [cotangents[step][name] for step in cotangents for name in path[step]]
    reached = [(output, weight) for output, weight in zip(outputs, weights, strict=True) if output.requires_grad]
    if not reached:
        return {name: torch.zeros_like(value) for name, value in theta.items()}
    outputs, weights = (list(of) for of in zip(*reached, strict=True))
    gradients = torch.autograd.grad(outputs, list(theta.values()), weights, materialize_grads=True)
    return dict(zip(theta, gradients, strict=True))


def query_weights(inner_steps: int, multi_step: float) -> dict[int, float]:
    """Return the weight w_s of the query loss after each inner step that counts; they sum to 1.

    MAML++'s multi-step loss (Antoniou et al. 2019): all steps 1 ... S count alike at first, and the weight moves to the
    last one. As in its code, none of the earlier ones falls below 0.03 / S before the last step alone counts.

    Args:
        inner_steps: S.
        multi_step: 1 where all steps count alike, falling to 0, where the last one alone does (the paper's MAML).
    """
    if inner_steps < 2 or multi_step <= 0:
        return {inner_steps: 1.0}
    early = max(0.03, multi_step) / inner_steps
    return dict.fromkeys(range(1, inner_steps), early) | {inner_steps: 1 - early * (inner_steps - 1)}


def reptile_gradient(theta: Parameters, phi: Parameters) -> Parameters:
    """Return theta - phi_S as a gradient (Nichol et al. 2018), 0 for meta-parameters that are not the module's.

    A gradient step of size 1 along its mean over tasks moves theta to the mean phi_S.
    """
    return {name: value - phi[name] if name in phi else torch.zeros_like(value) for name, value in theta.items()}
