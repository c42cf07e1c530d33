"""The picture that loggers without TensorBoard's page get."""

from lightning.pytorch.loggers import CometLogger, CSVLogger, MLFlowLogger, WandbLogger
from PIL import Image

from lightning_reg import RegularizationMonitor


def quiet(kind, calls):
    """Return a logger of Lightning's that has no service behind it."""

    class Experiment:
        def log_image(self, *args, **kwargs):
            calls.append((kind.__name__, [each for each in (*args, *kwargs.values()) if isinstance(each, Image.Image)]))

    class Fake(kind):
        name, version, run_id, experiment = "fake", "0", "7", Experiment()

        def __init__(self):
            self._prefix = ""

        def log_image(self, key, images, step=None):
            calls.append((kind.__name__, images))

    for name in ("log_metrics", "log_hyperparams", "log_graph", "save", "finalize", "after_save_checkpoint"):
        setattr(Fake, name, lambda *args, **kwargs: None)
    return Fake()


def test_the_folder_of_a_csv_logger_and_loggers_of_pictures_get_one_at_the_end(fit, tmp_path):
    calls = []
    services = [quiet(kind, calls) for kind in (WandbLogger, MLFlowLogger, CometLogger)]

    fit(RegularizationMonitor(), logger=[CSVLogger(tmp_path), *services])

    (file,) = tmp_path.rglob("reg.png")
    with Image.open(file) as saved:
        # Three layers by fourteen steps of three metrics: every step has its column.
        assert saved.format == "PNG"
        wide, high = saved.size
        assert wide >= 3 * 14
        assert high >= 3
        sparsity = saved.crop((200 + 168 + 24, 34, 200 + 168 + 24 + 168, 34 + 3 * 14))
        assert sparsity.getcolors() == [(168 * 42, (33, 145, 140))]  # constant
        norms = saved.crop((200, 34, 368, 34 + 3 * 14))
        assert {(68, 1, 84), (253, 231, 37)} <= {colour for _, colour in norms.getcolors(10_000)}
    assert [name for name, _ in calls] == ["WandbLogger", "MLFlowLogger", "CometLogger"]
    assert all(len(images) == 1 and images[0].size == (wide, high) for _, images in calls)
