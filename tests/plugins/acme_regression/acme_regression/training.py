"""A network with one hidden layer on standardised features, trained on all rows at once."""

import torch
from torch import nn

from acme_regression.v1 import regression_pb2 as pb


def fine_tune(run):
    torch.manual_seed(run.seed)
    x, y = (torch.tensor(run.parts["train"][name].to_pylist()) for name in ("features", "target"))
    mean, scale = y.mean(), y.std().clamp(min=1e-6)
    # Given all rows at once, BatchNorm standardises the features and keeps how for serving.
    norm = nn.BatchNorm1d(x.shape[1], affine=False, momentum=None)
    last = nn.Linear(run.config.hidden, 1)
    model = nn.Sequential(norm, nn.Linear(x.shape[1], run.config.hidden), nn.Tanh(), last, nn.Flatten(0))
    optimizer = torch.optim.Adam(model.parameters(), run.config.rate)
    for epoch in range(1, run.config.epochs + 1):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), (y - mean) / scale)
        loss.backward()
        optimizer.step()
        run.report(epoch, run.config.epochs, examples=epoch * len(y), loss=loss.item())
    with torch.no_grad():  # From standard units back to the target's own.
        last.weight.mul_(scale)
        last.bias.mul_(scale).add_(mean)
    return model.eval()


def predict(model, instances):
    with torch.inference_mode():
        values = model(torch.tensor([list(instance.features) for instance in instances]))
    return [pb.Prediction(value=value) for value in values.tolist()]


def export(model, directory):
    names = {"input_names": ["features"], "output_names": ["value"]}
    rows, file = torch.zeros(2, model[0].num_features), directory / "model.onnx"
    torch.onnx.export(model, (rows,), file, dynamic_shapes=[{0: "batch"}], external_data=False, verbose=False, **names)
    (directory / "num_features").write_text(str(model[0].num_features))
