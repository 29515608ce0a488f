//! Quantised CNN inference engine for CPUs. Knows neither ONNX nor tract.
