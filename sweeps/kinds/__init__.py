"""Every kind of work that a sweep may be made of: `KINDS` in `table.py`. Knows nothing of the other rooms.

An entry says what a node of that kind starts from, which settings its result depends on, what it costs,
which module of `sweeps.work` executes it and which columns its result gives. The sweep file's `stages`, the
plan and its price, the worker's dispatch, the record and the schema all follow from it.

To add a stage that an existing evaluation can measure, enter one line in `stages.py`:

    stage("raw_sliding", weights="raw", evaluation="sliding", what="raw weights, sliding windows"),

`weights` (raw, average, merged, int6) says which weights are measured, and so whether the stage starts from
the state at the end of the training, from states of the trunk, or from the artifact. `evaluation` (plain,
sliding, ttt) says how they are measured; its settings and its price follow. The column is `<name>_bpb`.
`optional=True`: done only where a sweep file's `stages` name it. Other weights are added in `kind.py` (where
they come from) and `sweeps/work/measure.py` (how they are loaded), another evaluation in
`gepa_core/evaluation/stages.py`.

To add another kind of work, write one module in `sweeps/work` with

    def run(at: Attempt) -> Outcome: ...                    # does it, and says what came of it
    def execution(at: Attempt) -> dict[str, Any]: ...       # how it was executed, for the record

and enter a `Kind` that names it in `table.py`.
"""
