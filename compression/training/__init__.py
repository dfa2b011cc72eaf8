"""What needs a training set: fine-tuning, distillation, quantization-aware training, heads of low rank, export."""
