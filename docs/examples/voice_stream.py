"""Send a spoken sound to a server of `voice.toml` and print when somebody speaks, as it is heard.

python3 voice_stream.py 127.0.0.1:8000 sound.wav    (mono, 16 bits, 16 or 48 kHz)
"""

import http.client
import json
import sys
import wave
from array import array

# The model looks at 512 samples and the 64 before them.
STEP, CONTEXT = 512, 64


def read_frames(path):
    """Return the samples of all steps, one behind the other, and the number of steps."""
    with wave.open(path) as sound:
        thinning = {16000: 1, 48000: 3}[sound.getframerate()]
        samples = array("h", sound.readframes(sound.getnframes()))
    numbers = [
        sum(samples[at : at + thinning]) / thinning / 32768
        for at in range(0, len(samples) - thinning + 1, thinning)
    ]
    padded = [0.0] * CONTEXT + numbers
    steps = len(numbers) // STEP
    frames = array("f")
    for step in range(steps):
        frames.extend(padded[step * STEP : (step + 1) * STEP + CONTEXT])
    return frames, steps


def listen(server, frames, steps):
    """Yield the probabilities of speech, an answer at a time, while the server computes."""
    data = frames.tobytes()
    told = {"name": "input", "shape": [steps, STEP + CONTEXT], "datatype": "FP32",
            "parameters": {"binary_data_size": len(data)}}  # fmt: skip
    head = json.dumps({"inputs": [told]}).encode()
    connection = http.client.HTTPConnection(server)
    connection.request(
        "POST",
        "/v2/models/voice/infer_stream",
        head + data,
        {"Inference-Header-Content-Length": str(len(head))},
    )
    answer = connection.getresponse()
    if answer.status != 200:
        raise SystemExit(json.loads(answer.read())["error"])
    event = "message"
    for line in answer:
        field, _, value = line.decode().rstrip("\n").partition(": ")
        if field == "event":
            event = value
        elif field == "data" and event == "message":
            yield json.loads(value)["outputs"][0]["data"]
        elif field == "data" and event == "error":
            raise SystemExit(json.loads(value)["error"])


def main():
    """Print a line for each step of 32 ms in which somebody speaks."""
    if len(sys.argv) != 3:
        sys.exit(f"usage: python3 {sys.argv[0]} HOST:PORT SOUND.wav")
    server, path = sys.argv[1:]
    step = 0
    for probabilities in listen(server, *read_frames(path)):
        for probability in probabilities:
            if probability > 0.5:
                sys.stdout.write(f"{step * STEP / 16000:5.2f} s {probability:6.0%}\n")
            step += 1
        sys.stdout.flush()


if __name__ == "__main__":
    main()
