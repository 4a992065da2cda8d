"""What fine-tunes in PyTorch have in common. Trainers import it; the serving process never does, for it imports torch.

It holds functions, not a framework: a trainer is a module of its plugin that reads from top to bottom and calls what it
needs from here.

- `loop`: the steps, the validation, the checkpoint.
- `devices`: the CPU, or CUDA where torch finds it.
- `precision`: bfloat16 where the processor computes in it.
- `batches`: batches of like lengths.
- `optim`: weight decay on matrices only; warm-up and linear decay.
- `checkpoint`: the best weights, and when to stop.
- `progress`: progress and cancellation at a bounded cost.
- `export`: an ONNX file that is proven equal to its module.
"""
