# Hooks that stop a run whose numbers are none. The tools of this package add them to every run; elsewhere one
# line brings them: _base_ = [..., 'PATH/TO/configs/_base_/safe_run.py'], where mmhcg is installed.
custom_hooks = [dict(type='mmhcg.FiniteTraining'), dict(type='mmhcg.CheckedPredictions')]
