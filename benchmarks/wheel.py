"""Build a wheel, install it alone into an empty environment, and train with it.

usage: python benchmarks/wheel.py     (needs the `dev` extra)
"""

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TRAIN = """
import nnlite as nn
data = nn.data.shapes(2000)
model = nn.Sequential(nn.Normalize(128, 64), nn.Conv2D(16, 3), nn.ReLU(), nn.MaxPool2D(4), nn.Flatten(), nn.Dense(10),
                      input_shape=(32, 32, 3))
trainer = nn.Trainer(model, nn.CrossEntropy(), nn.Adam(3e-3), metrics=[nn.Accuracy()])
history = trainer.fit(data.train, epochs=3, validation=data.test)
assert history["loss"][-1] < history["loss"][0]
model.save("m.safetensors")
assert (nn.load("m.safetensors")(data.test.images) == model(data.test.images)).all()
print(nn.__version__, nn.__file__)
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", folder, str(ROOT)], check=True)
        wheel = next(Path(folder).glob("*.whl"))
        print(f"{wheel.name}: {wheel.stat().st_size / 1024:.0f} KiB")
        venv.create(Path(folder) / "env", with_pip=True)
        python = Path(folder) / "env" / "bin" / "python"
        subprocess.run([python, "-m", "pip", "install", "--quiet", str(wheel)], check=True)
        subprocess.run([python, "-c", TRAIN], check=True, cwd=folder)


if __name__ == "__main__":
    main()
