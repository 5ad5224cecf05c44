import pytest
import torch
from torch import nn

from evaluation.hooks import eval_mode, maps_and_logits, outputs_of


def hooks_of(model):
    return sum(len(module._forward_hooks) for module in model.modules())


def test_eval_mode_restores_the_mode_of_each_module_even_after_an_error(small_network):
    small_network.train()
    small_network.features[1].eval()  # on purpose, as frozen features are
    modes = [module.training for module in small_network.modules()]
    with pytest.raises(KeyError), eval_mode(small_network):
        assert not any(module.training for module in small_network.modules())
        raise KeyError
    assert [module.training for module in small_network.modules()] == modes
    assert True in modes and False in modes


def test_outputs_are_seen_each_time_a_module_runs_and_hooks_are_removed(small_network):
    images, (convolution, norm, _) = torch.rand(2, 3, 16, 16), small_network.features
    seen = []
    with outputs_of(small_network, [convolution, norm], lambda module, output: seen.append((module, output.shape))):
        small_network(images)
        small_network(images[:1])
    assert [module for module, _ in seen] == [convolution, norm, convolution, norm]
    assert [shape[0] for _, shape in seen] == [2, 2, 1, 1]
    assert hooks_of(small_network) == 0
    small_network(images)
    assert len(seen) == 4


def test_what_is_seen_cannot_change_what_the_model_computes(small_network):
    images = torch.rand(2, 3, 16, 16)
    expected = small_network.eval()(images)
    with outputs_of(small_network, [small_network.features], lambda module, output: torch.zeros_like(output)):
        assert torch.equal(small_network(images), expected)


def test_hooks_are_removed_after_an_error_in_the_block(small_network):
    with pytest.raises(KeyError), outputs_of(small_network, [small_network.features], print):
        raise KeyError
    assert hooks_of(small_network) == 0


def test_modules_of_another_model_or_that_do_not_run_are_refused(small_network):
    small_network.unused = nn.Conv2d(3, 3, 1)
    with pytest.raises(ValueError, match="Linear"), outputs_of(small_network, [nn.Linear(2, 2)], print):
        pass
    with pytest.raises(ValueError, match="Conv2d"), outputs_of(small_network, [small_network.unused], print):
        small_network(torch.rand(2, 3, 16, 16))
    assert hooks_of(small_network) == 0


def test_maps_are_those_of_the_layer_although_the_next_one_works_in_place():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten())
    images = torch.randn(2, 3, 8, 8)
    maps, logits = maps_and_logits(model, images, model[0])
    assert torch.equal(maps, model[0](images)) and (maps < 0).any()
    assert torch.equal(logits, model(images))
    assert maps.requires_grad


def test_the_last_output_counts_where_a_layer_runs_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 3, 1)

        def forward(self, images):
            return self.layer(self.layer(images)).mean(dim=(2, 3))

    model, images = Twice(), torch.rand(1, 3, 4, 4)
    maps, _ = maps_and_logits(model, images, model.layer)
    assert torch.equal(maps, model.layer(model.layer(images)))


class Pair(nn.Module):
    def forward(self, images):
        return images, images


class FirstOf(nn.Sequential):
    def forward(self, images):
        return super().forward(images)[0]


class ChannelsLast(nn.Module):
    """Patches of 4 x 4 pixels as a Swin Transformer has them: (N, height, width, channels)."""

    def __init__(self, channels=5):
        super().__init__()
        self.patches, self.norm, self.head = (
            nn.Conv2d(3, channels, 4, 4),
            nn.LayerNorm(channels),
            nn.Linear(channels, 2),
        )

    def forward(self, images):
        return self.head(self.norm(self.patches(images).permute(0, 2, 3, 1)).mean(dim=(1, 2)))


@pytest.mark.parametrize("size", [(16, 16), (16, 24), (33, 21)])
def test_maps_with_the_channels_last_are_turned_and_others_are_not(size):
    model, images = ChannelsLast(), torch.randn(2, 3, *size)
    last, _ = maps_and_logits(model, images, model.norm)
    assert torch.equal(last, model.norm(model.patches(images).permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
    first, _ = maps_and_logits(model, images, model.patches)
    assert torch.equal(first, model.patches(images))


def test_where_both_orders_fit_channels_come_first():
    model, images = ChannelsLast(channels=4), torch.randn(2, 3, 16, 16)
    assert torch.equal(maps_and_logits(model, images, model.patches)[0], model.patches(images))


def test_maps_without_the_proportions_of_the_images_or_of_another_number_are_refused():
    images = torch.randn(2, 3, 16, 16)
    for layer in (nn.AdaptiveAvgPool2d((2, 7)), nn.Unflatten(1, (3, 1))):
        with pytest.raises(ValueError, match="proportions of the images"):
            maps_and_logits(nn.Sequential(layer, nn.Flatten()), images, layer)
    windows = nn.Flatten(0, 1)  # (6, 16, 16) of two images
    with pytest.raises(ValueError, match=r"not \(6, 16, 16\)"):
        maps_and_logits(nn.Sequential(windows), images, windows)


@pytest.mark.parametrize("layer", [["a list"], "features.1", None, 3])
def test_what_is_no_module_is_refused_by_its_type(layer, small_network):
    with pytest.raises(ValueError, match=rf"the layer \({type(layer).__name__}\) is not a module of the model"):
        maps_and_logits(small_network, torch.rand(1, 3, 8, 8), layer)


@pytest.mark.parametrize("layers", [[Pair()], [nn.Flatten(), Pair()]], ids=["a tuple", "two dimensions"])
def test_a_layer_without_maps_is_refused(layers):
    with pytest.raises(ValueError, match="must give maps"):
        maps_and_logits(FirstOf(*layers), torch.rand(1, 3, 8, 8), layers[0])
