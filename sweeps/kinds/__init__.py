"""Every kind of work that a sweep may be made of: `KINDS` in `table.py`. Imports nothing else of `sweeps`.

A plan is a tree of nodes, each one piece of work (`sweeps/plan/tree.py`). The entry of a kind says what a
node of that kind starts from, which settings its result depends on, what it costs, which module of
`sweeps.work` executes it and which columns its result gives. The sweep file's `stages`, the plan and its
price, the worker's dispatch, the record and the schema all follow from it.

To add a stage that measures weights which are there already, by an evaluation which is, enter one line in
`stages.py`:

    stage("raw_sliding", weights="raw", evaluation="sliding", what="raw weights, sliding windows"),

`weights` (raw, average, merged, int6) says which weights are measured, and so whether the stage starts from
the state at the end of the training, from states of the trunk, or from the artifact. `evaluation` (plain,
sliding, ttt) says how they are measured; its settings and its price follow. The column is `<name>_bpb`.
With `optional=True` it is done only where a sweep file's `stages` name it. To measure other weights, add them
in `kind.py` (where they come from) and `sweeps/work/measure.py` (how they are loaded); to measure in another
way, add it in `kind.py` (its settings and price) and `gepa_core/evaluation/stages.py`.

To add another kind of work, write one module in `sweeps/work` with

    def run(at: Attempt) -> Outcome: ...                    # does it, and says what came of it
    def execution(at: Attempt) -> dict[str, Any]: ...       # how it was executed, for the record

and enter a `Kind` that names it in `table.py`. (`Attempt` is in `sweeps/work/job.py`.)
"""
