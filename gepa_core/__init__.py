"""One job: training, quantization, evaluation, test-time training. Knows neither Ray nor sweeps."""
