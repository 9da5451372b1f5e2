"""An artifact against transformers, part by part, on the user's own checkpoint: `export verify --parity`.

    scenes        generated prompts: texts, pictures, a video
    processor     what transformers makes of them: token ids, pixel values
    judge         transformers' modules, on the meta device until a part's tensors are there
    ours          the same parts as a worker computes them, from the artifact
    tensors       the checkpoint's tensors, as transformers wants them; bit by bit against the artifact's
    part          how far two outputs are apart, and when that is rounding
    comparison    part after part; progress: what is kept of an interrupted one
    receipt       what is kept of a finished one; terminal: what is shown

Parts are named as transformers names its modules and inputs. Only `judge`, `processor` and `tensors` import it.
"""
