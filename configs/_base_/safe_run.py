"""Training that survives: _base_ = ['YOUR_BASE.py', 'mmhcg::_base_/safe_run.py'].

Only new keys, for bases must not share any, and a list of hooks in the heir would replace one from here.
SafeRunner adds each of `safe_hooks` unless the config has a hook of the same class.
"""

runner_type = 'mmhcg.runs.safe_runner.SafeRunner'
safe_hooks = [
    dict(type='mmhcg.FiniteTraining'),
    dict(type='mmhcg.CheckedPredictions'),
    dict(type='mmhcg.PreemptionHook'),
    dict(type='mmhcg.RunStateHook'),
]
