"""Files in the authors' layouts, made from random tensors, for tests."""


def classification_layout(state):
    """Entries named as the authors' classification code names them, from those of their detection code."""
    renamed = {}
    for key, tensor in state.items():
        head, rest = key.split('.', 1)
        if head.startswith('stem'):
            layer, entry = rest.split('.')
            renamed[f'features.{dict(conv="conv", bn1="norm")[layer]}{head[4:]}.{entry}'] = tensor
        elif head.startswith('hybridblock'):
            module, rest = rest.split('.', 1)
            renamed[f'features.{head}.SMG{int(module) + 1}.{rest.replace("bn1", "norm")}'] = tensor
        elif head.startswith('transition'):
            renamed[f'features.transition{int(head[10:]) - 1}.{rest.replace("bn1", "norm")}'] = tensor
        else:
            renamed[f'features.norm5.{rest}'] = tensor
    return renamed
