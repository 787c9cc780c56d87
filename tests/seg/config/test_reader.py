"""Recipes: everything in them is checked, overridable, and survives TOML and JSON."""

import json

import pytest

from ncaseg import config

MINIMAL = 'name = "x"\n[train]\nsteps = 3\n'


def write(tmp_path, text):
    path = tmp_path / "x.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", config.recipe_names())
def test_packaged_recipe_loads_and_carries_its_name(name):
    assert config.load_recipe(name).name == name


def test_fast_recipe_states_the_agreed_settings():
    cfg = config.load_recipe("m3d-hippocampus-fast")
    assert (cfg.model.kernel_sizes, cfg.model.steps, cfg.data.size) == ((3,), (24,), ())
    assert (cfg.train.batch_size, cfg.train.accumulate, cfg.train.grad_clip) == (1, 2, 1.0)
    assert (cfg.train.lr, cfg.train.betas) == (1.6e-3, (0.9, 0.99))
    assert (cfg.train.schedule, cfg.train.lr_final) == ("cosine", 0.05)


@pytest.mark.parametrize("name", ["demo", "m3d-hippocampus-2level", "octree-prostate"])
def test_config_survives_toml_and_json(name, tmp_path):
    cfg = config.load_recipe(name)
    assert config.load_recipe(write(tmp_path, config.to_toml(cfg))) == cfg
    assert config.from_dict(json.loads(json.dumps(config.to_dict(cfg)))) == cfg


def test_overrides_apply_in_order_and_take_toml_or_bare_words():
    overrides = ["train.steps=5", "train.steps=7", "train.schedule=constant", "model.steps=[3]", "train.lr=1"]
    cfg = config.load_recipe("demo", overrides)
    assert (cfg.train.steps, cfg.train.schedule, cfg.model.steps, cfg.train.lr) == (7, "constant", (3,), 1.0)
    assert isinstance(cfg.train.lr, float)


def test_differences_names_each_changed_key():
    old, new = config.load_recipe("demo"), config.load_recipe("demo", ["train.lr=0.5", "model.hidden=8"])
    assert config.differences(old, new) == ["train.lr: 0.0032 -> 0.5", "model.hidden: 64 -> 8"]
    assert config.differences(old, old) == []


@pytest.mark.parametrize(
    ("override", "error", "words"),
    [
        ("train.stepz=3", ValueError, "did you mean train.steps"),
        ("trian.steps=3", ValueError, "did you mean train"),
        ("train.steps=many", TypeError, "train.steps must be of type int"),
        ("train.steps=1.5", TypeError, "train.steps must be of type int"),
        ("train.steps=true", TypeError, "train.steps must be of type int"),
        ("train.lr=true", TypeError, "train.lr must be of type float"),
        ("train.lr=-1", ValueError, "train.lr must be positive"),
        ("train.schedule=linear", ValueError, "train.schedule must be one of"),
        ("train.batch_size=0", ValueError, "train.batch_size must be at least 1"),
        ("train.betas=[0.9]", ValueError, "train.betas must have 2 entries"),
        ("train.betas=0.9", TypeError, "train.betas must be a list"),
        ("model.kernel_sizes=[4]", ValueError, "model.kernel_sizes must be odd"),
        ("model.steps=[1, 2]", ValueError, "model.steps must have one entry per level"),
        ("model.scales=[[2, 2, 2]]", ValueError, "model.scales must have one entry less"),
        ("model.channels=1", ValueError, "model.channels must be at least"),
        ("model.fire_rate=1.5", ValueError, "model.fire_rate must lie in"),
        ("model.out_channels=3", ValueError, "model.out_channels must be 1"),
        ("model.in_channels=2", ValueError, "model.in_channels must equal"),
        ("model.patches=[[], []]", ValueError, "model.patches must have one entry per level"),
        ("model.patches=[[4, 4]]", ValueError, "model.patches must be .* three sizes"),
        ("model.ndim=4", ValueError, "model.ndim must be 2 or 3"),
        ("model.ndim=2", ValueError, 'model.norm must be "none" or "instance" with model.ndim 2'),
        ("model.perception=sparse", ValueError, "model.perception must be one of"),
        ("data.fit=stretch", ValueError, "data.fit must be one of"),
        ("train.loss=dice", ValueError, "train.loss must be one of"),
        ("train.optimizer=sgd", ValueError, "train.optimizer must be one of"),
        ("train.lr_interval=week", ValueError, "train.lr_interval must be one of"),
        ("train.foreground_crops=2", ValueError, "train.foreground_crops must lie"),
        ("train.slices=3", ValueError, "train.slices must be 0 unless model.ndim is 2"),
        ("train.loss_weights=[1, -1]", ValueError, "train.loss_weights must not be negative"),
        ("model.pool=mean", ValueError, "model.pool must be one of"),
        ("model.pad=wrap", ValueError, "model.pad must be one of"),
        ("train.ema_decay=1", ValueError, "train.ema_decay must lie"),
        ("train.ema_interval=day", ValueError, "train.ema_interval must be one of"),
        ("augment.flip=[1, 1]", ValueError, "augment.flip must have 3 entries"),
        ("augment.gama=1", ValueError, "did you mean augment.gamma"),
        ("data.labels=[0]", ValueError, "data.labels must be values from 1"),
        ("data.size=[4, 4]", ValueError, "data.size must be empty"),
        ("data.clip_percentiles=[99, 1]", ValueError, "data.clip_percentiles must be"),
        ("predict.threshold=1", ValueError, "predict.threshold must lie"),
        ("steps=3", ValueError, "section.key=value"),
        ("train.steps", ValueError, "section.key=value"),
        ("name.x=3", ValueError, "inside a section"),
        ("train=3", ValueError, "section.key=value"),
    ],
)
def test_wrong_override_is_named(override, error, words):
    with pytest.raises(error, match=words):
        config.load_recipe("demo", [override])


def test_sizes_of_levels_stand_for_scales():
    octree = ["model.kernel_sizes=[3, 3, 3]", "model.steps=[1, 1, 1]"]
    cfg = config.load_recipe("demo", [*octree, "model.sizes=[[5, 5, 6], [10, 9, 6], [20, 18, 12]]"])
    assert cfg.model.scales == ((2, 2, 1), (2, 2, 2))
    for wrong in ("[[5, 5, 6], [7, 9, 6], [20, 18, 12]]", "[[0, 1, 1]]", "[]"):
        with pytest.raises(ValueError, match=r"model\.sizes must be"):
            config.load_recipe("demo", [*octree, f"model.sizes={wrong}"])
    with pytest.raises(TypeError, match=r"model\.sizes"):
        config.load_recipe("demo", ["model.sizes=3"])
    with pytest.raises(ValueError, match="without model.scales"):
        config.load_recipe("demo", ["model.sizes=[[2, 2, 2]]", "model.scales=[]"])


def test_automatic_steps_become_numbers():
    assert config.load_recipe("m3d-hippocampus-2level", ["model.steps=auto"]).model.steps == (11, 32)
    assert config.load_recipe("m3d-hippocampus", ["model.steps=auto"]).model.steps == (22,)
    with pytest.raises(ValueError, match="needs data.size or data.crop on the axes XYZ to cross"):
        config.load_recipe("demo", ["model.steps=auto"])


def test_automatic_steps_cross_the_box_and_not_the_slices():
    def steps(*overrides):
        return config.load_recipe("med-nca", ["model.steps=auto", *overrides]).model.steps

    assert steps() == (64, 64)  # 64x64 cells of 256x256; the third axis is native
    assert steps("data.size=[256, 256, 900]") == (64, 64)
    assert steps("data.crop=[128, 96, 0]") == steps("data.size=[]", "data.crop=[128, 96, 0]") == (32, 32)
    assert steps("data.crop=[0, 96, 0]", "model.patches=[[], []]") == (64, 256)
    with pytest.raises(ValueError, match=r"on the axes XY to cross; got data.size \(256, 0, 0\) and data.crop \(\)"):
        steps("data.size=[256, 0, 0]")
    assert config.load_recipe("medsegdiff-small", ["model.steps=auto"]).model.steps == (16, 64)  # whole levels


def test_sizes_of_levels_end_with_the_size_of_the_data():
    sizes = ["model.kernel_sizes=[3, 3]", "model.steps=[1, 1]", "model.sizes=[[5, 9, 6], [10, 18, 12]]"]
    for size in ("[]", "[10, 0, 0]", "[10, 18, 12]"):
        assert config.load_recipe("demo", [*sizes, f"data.size={size}"]).model.scales == ((2, 2, 2),)
    with pytest.raises(ValueError, match=r"model\.sizes must end with data\.size \(10, 16, 0\) .* got \(10, 18, 12\)"):
        config.load_recipe("demo", [*sizes, "data.size=[10, 16, 0]"])


def test_steps_or_epochs_is_required(tmp_path):
    with pytest.raises(ValueError, match="train.steps or train.epochs"):
        config.load_recipe(write(tmp_path, 'name = "x"\n[train]\nlr = 0.1\n'))


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        (MINIMAL + "[modle]\nhidden = 3\n", ValueError, "unknown key modle; did you mean model"),
        ('name = "x"\n', ValueError, "key train is missing"),
        ('name = "x"\ntrain = 3\n', TypeError, "train must be a section"),
        ("name = ", ValueError, "not valid TOML"),
    ],
)
def test_wrong_file_is_named(tmp_path, text, error, words):
    with pytest.raises(error, match=words):
        config.load_recipe(write(tmp_path, text))


def test_unknown_recipe_lists_the_known_ones(tmp_path):
    with pytest.raises(FileNotFoundError, match="m3d-hippocampus-fast"):
        config.load_recipe("hippo")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        config.load_recipe(tmp_path / "none.toml")
