"""Backends: one module (or package) each, with exactly four exports.

``why_not(problem) -> str | None``
    Why this backend cannot run a call of that metadata; None if it can. The only predicate a backend has.
``stats_width(problem) -> int``
    How many float64 numbers of norm statistics it keeps per step and group; 0 for norm "none". Groups: one for norm
    "batch", one per sample for "instance".
``fwd(state, perceive_weight, perceive_bias, hidden_weight, hidden_bias, norm_weight, norm_bias, out_weight,
perceive_from, scale, shift, out_bias, *, spec, steps, seed, first_step, first_sample, origin, extent, keep_every, keep)
-> (out, kept, stats)``
    ``out [B, *S, C]``. ``kept [num_kept, B, *S, C]``: the states after keep_every, 2 * keep_every, ... steps, strictly
    before ``steps``; none unless ``keep``. ``stats [steps, groups, stats_width]`` in float64 if ``keep`` and there is a
    norm, else ``[0, 0, 0]``.
``bwd(d_out, state, kept, stats, <the eleven tensors above after state>, *, <the same keywords without keep>)
-> (d_state, d_perceive_weight, d_perceive_bias, d_hidden_weight, d_hidden_bias, d_norm_weight, d_norm_bias,
d_out_weight, d_perceive_from, d_scale, d_shift, d_out_bias)``
    Computes the steps between kept states again, with the same fire mask.

All tensors are contiguous. State, perceive_from, d_out and kept have the state's dtype, all else float32. Tensors that
a call does not use are None, and so are their gradients. ``steps`` is at least 1, and exactly 1 with perceive_from.
``seed`` is an int of 64 bits, signed, or a 0-d int64 tensor if it and the state are on an accelerator;
``origin`` and ``extent`` hold one int per spatial axis. Inputs are never written.
"""
