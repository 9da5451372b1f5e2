"""What an answer may go on with: compiled grammars and masks of tokens, worked out on threads of their own.

    collecting thread   token t of a session ──┐
    grammar thread                             └─► consume t ─► mask for t + 1 ──┐
    compute thread      launch of t + 1:  blocks, head … queued ─────────────────┴─► mask sent, token sampled
    GPU                                   ════ blocks, head ════════════════════════ sampling ═══

Token t goes to the conductor and comes back through all stages before t + 1 is sampled: by then its mask is there.
Where it is not, the host waits for it while the device computes.
"""
