"""Where `--data-root` finds the files of a config."""

from __future__ import annotations

from mmengine.config import Config

from mmhcg.runs.datasets import leaf_datasets, move_data


def config() -> Config:
    """Its data lies in `data/coco`; each part spells that in its own way."""
    dataset = dict(type='CocoDataset', data_root='./data/coco/', ann_file='annotations/x.json')
    metric = dict(type='CocoMetric', ann_file='data/coco/annotations/x.json')
    return Config(dict(data_root='data/', val_dataloader=dict(dataset=dataset), val_evaluator=metric))


def test_names_are_kept_below_the_innermost_of_the_old_roots(tmp_path):
    cfg = config()
    move_data(cfg, str(tmp_path))
    assert cfg.val_evaluator.ann_file == str(tmp_path / 'annotations/x.json')


def test_a_tilde_is_the_users_home(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    cfg = config()
    move_data(cfg, '~/coco')
    (dataset,) = leaf_datasets(cfg, 'val')
    assert dataset.data_root == cfg.data_root == str(tmp_path / 'coco')
