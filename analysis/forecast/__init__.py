"""What a run not made would score. A `Table` comes in; values with intervals go out, judged by backtests.

`predict` and `backtest` are the ways in, `ensemble` the forecast, `folds` its inner backtests.
"""
