"""The papers' formulas with plain Python loops over one sample; weights are taken from the model under test by name."""

import math


def linear_part(weights, rows, dense, fields=None):
    """sum_f w_f + sum_k dense_k u_k + bias."""
    chosen = range(len(rows)) if fields is None else fields
    logit = weights["linear.bias"][0] if "linear.bias" in weights else 0.0
    for f in chosen:
        logit += rows[f][0]
    for k, value in enumerate(dense):
        logit += value * weights["linear.weight"][k][0]
    return logit


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def pairs(num_fields):
    return [(i, j) for i in range(num_fields) for j in range(i + 1, num_fields)]


def pairwise_sum(embedding):
    return sum(dot(embedding[i], embedding[j]) for i, j in pairs(len(embedding)))


def affine(matrix, bias, x):
    return [dot(row, x) + b for row, b in zip(matrix, bias, strict=True)]


def mlp(weights, x, *, batch_norm=False, clip=math.inf):
    """Linear, batch norm with the running statistics, ReLU, clip; the last Linear alone."""
    linears = sorted(
        int(name.split(".")[1]) for name in weights if name.startswith("mlp.") and is_matrix(weights[name])
    )
    for index in linears[:-1]:
        x = affine(weights[f"mlp.{index}.weight"], weights[f"mlp.{index}.bias"], x)
        if batch_norm:
            norm = {key: weights[f"mlp.{index + 1}.{key}"] for key in ("weight", "bias", "running_mean", "running_var")}
            x = [
                (value - norm["running_mean"][c]) / math.sqrt(norm["running_var"][c] + 1e-5) * norm["weight"][c]
                + norm["bias"][c]
                for c, value in enumerate(x)
            ]
        x = [min(max(value, 0.0), clip) for value in x]
    return affine(weights[f"mlp.{linears[-1]}.weight"], weights[f"mlp.{linears[-1]}.bias"], x)[0]


def is_matrix(value):
    return isinstance(value, list) and isinstance(value[0], list)


def row_times_matrix(v, matrix):
    return [sum(v[a] * matrix[a][b] for a in range(len(v))) for b in range(len(matrix[0]))]


def senet(weights, embedding, excitation):
    """Huang et al. 2019, section 3.2: squeeze by the mean, excite by two layers without bias, re-weight."""
    squeezed = [sum(v) / len(v) for v in embedding]
    hidden = [max(dot(row, squeezed), 0.0) for row in weights["senet.excite.0.weight"]]
    excited = [dot(row, hidden) for row in weights["senet.excite.2.weight"]]
    final = (lambda a: max(a, 0.0)) if excitation == "relu" else (lambda a: 1 / (1 + math.exp(-a)))
    return [[value * final(a) for value in v] for v, a in zip(embedding, excited, strict=True)]


def bilinear(matrices, embedding, kind, product):
    """Huang et al. 2019, section 3.3, as one flat list."""
    out = []
    for p, (i, j) in enumerate(pairs(len(embedding))):
        matrix = {"field_all": matrices, "field_each": matrices[i], "field_interaction": matrices[p % len(matrices)]}[
            kind
        ]
        turned = row_times_matrix(embedding[i], matrix)
        if product == "hadamard":
            out += [a * b for a, b in zip(turned, embedding[j], strict=True)]
        else:
            out.append(dot(turned, embedding[j]))
    return out


def flat(embedding, dense):
    return [value for v in embedding for value in v] + list(dense)
