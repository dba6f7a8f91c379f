"""The stages that measure a BPB, in the job's order: a further one is one entry."""

from sweeps.kinds.kind import Kind, stage

MEASURED: tuple[Kind, ...] = (
    stage("float", weights="raw", evaluation="plain", what="raw weights, plain evaluation"),
    stage("ema", weights="average", evaluation="plain", what="EMA weights, plain evaluation"),
    stage(
        "ema_sliding",
        weights="average",
        evaluation="sliding",
        what="EMA weights that were never quantized, sliding windows",
        optional=True,
    ),
    stage(
        "ema_ttt",
        weights="average",
        evaluation="ttt",
        what="EMA weights that were never quantized, sliding windows and test-time training",
        optional=True,
    ),
    stage(
        "merged",
        weights="merged",
        evaluation="plain",
        what="weighted mean of states of the constant phase up to peak_steps, plain evaluation",
        optional=True,
    ),
    stage(
        "int6",
        weights="int6",
        evaluation="plain",
        what="decoded int6 artifact of the EMA weights, plain evaluation",
    ),
    stage(
        "int6_sliding", weights="int6", evaluation="sliding", what="decoded int6 artifact, sliding windows"
    ),
    stage(
        "ttt",
        weights="int6",
        evaluation="ttt",
        what="decoded int6 artifact, sliding windows and score-first test-time training",
    ),
)
