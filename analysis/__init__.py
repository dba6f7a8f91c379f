"""From a table of runs to an answer: laws, predictions, effects, report. Knows neither torch nor Ray."""
