"""SGD: w -= lr * (g + hyper.l2 * w). As torch.optim.SGD with weight_decay."""


def state_dim(hyper, dim):
    return 0


def update(hyper, values, gradient, learning_rate):
    for j in range(values.shape[0]):
        values[j] -= learning_rate * (gradient[j] + hyper.l2 * values[j])
