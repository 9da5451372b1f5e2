"""The Qwen3-VL model family, dense and mixture of experts: configuration, vision tower, decoder, positions."""
