"""The second stage: what the forward model's residuals still tell of a star's labels, learned from stars with labels.

In: a star's forward posterior without labels and its residual spectrum. Out: a correction of that posterior. `features` says
what is looked at, `copies` makes noisier and redder stars to learn from, `learning` trains, `networks` is what is trained,
`support` where it has not been trained, `refined` gives refined labels, `adjusting` what of these stars kept aside bear out.
"""
