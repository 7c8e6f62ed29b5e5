"""The model server: KServe's own, with a predictor for the image classifier. Open Inference Protocol (V2) over HTTP.

Run:     python serve.py MODEL_DIR [--host 127.0.0.1] [--port 8080] [--address-file FILE] [--until-end-of PID]
Source:  KServe's documentation, "Deploy Custom Python Serving Runtime with InferenceService"; the Open
         Inference Protocol.
"""

import argparse
import contextlib
import json
import os
import socket
import threading
import uuid
from pathlib import Path

import kserve
import numpy as np
import psutil
import torch
from kserve import InferInput, InferOutput, InferRequest, InferResponse
from kserve.protocol.rest.server import RESTServer

from model import torch_network


class Classifier(kserve.Model):
    """Takes images float32 in [0, 1] (n, channels, height, width).

    Gives `logits` float32 (n, classes) and `labels` int64 (n,).
    """

    def __init__(self, name, model_dir):
        super().__init__(name)
        self.card = json.loads((Path(model_dir) / "card.json").read_text())
        self.network = torch_network(self.card["num_channels"], self.card["num_classes"], self.card["width"])
        self.network.load_state_dict(torch.load(Path(model_dir) / "model.pt", weights_only=True, map_location="cpu"))
        self.network.eval()
        self.ready = True

    def predict(self, request: InferRequest, headers=None, response_headers=None) -> InferResponse:
        (images,) = (entry for entry in request.inputs if entry.name == "images")
        wanted = [self.card["num_channels"], *self.card["image_size"]]
        if images.shape[1:] != wanted:
            raise kserve.errors.InvalidInput(
                f"images of shape {images.shape}: expected [n, {', '.join(map(str, wanted))}]"
            )
        with torch.no_grad():
            logits = self.network(torch.from_numpy(images.as_numpy().astype(np.float32))).numpy()
        outputs = []
        for name, datatype, values in (("logits", "FP32", logits), ("labels", "INT64", logits.argmax(1))):
            output = InferOutput(name, list(values.shape), datatype)
            output.set_data_from_numpy(values, binary_data=False)
            outputs.append(output)
        return InferResponse(request.id or str(uuid.uuid4()), self.name, outputs)

    def get_input_types(self):
        return [InferInput("images", [-1, self.card["num_channels"], *self.card["image_size"]], "FP32")]


def end_with(pid):
    """Ends this process when the process `pid` does, however that one ends: nobody would be left to stop it."""

    def wait():
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(pid).wait()
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir")
    parser.add_argument("--name", default="digits")
    parser.add_argument(
        "--host", default="127.0.0.1", help="0.0.0.0 in a pod, where only the network policy lets others in"
    )
    parser.add_argument("--port", type=int, default=8080, help="0: any that is free")
    parser.add_argument("--address-file", help="where to write the address that was bound")
    parser.add_argument("--until-end-of", type=int, metavar="PID")
    args = parser.parse_args()
    if args.until_end_of:
        end_with(args.until_end_of)
    try:
        listener = socket.create_server((args.host, args.port))
    except OSError as error:
        raise SystemExit(
            f"port {args.port} of {args.host} cannot be had: {error.strerror}; choose another one, or 0"
        ) from None
    server = kserve.ModelServer(enable_grpc=False)
    server.register_model(Classifier(args.name, args.model_dir))
    # `ModelServer.start` would listen on all addresses; its REST server takes a socket.
    rest = RESTServer("kserve.model_server:app", server.dataplane, server.model_repository_extension, args.port)
    if args.address_file:
        content = {"pid": os.getpid(), "url": f"http://{args.host}:{listener.getsockname()[1]}", "name": args.name}
        partial = Path(args.address_file).with_suffix(".partial")
        partial.write_text(json.dumps(content))
        partial.replace(args.address_file)
    rest.run(sockets=[listener])


if __name__ == "__main__":
    main()
