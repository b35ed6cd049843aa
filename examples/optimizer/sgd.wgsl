// Stochastic gradient descent with momentum, as in torch.optim.SGD with a dampening of 0:
//
//   g = g + weight_decay p        b = momentum b + g        p = p - learning_rate b
//
// Nesterov's momentum uses g + momentum b instead of b in the last formula.

alias State = f32; // b

fn begin_step(steps_taken: u32) {}

fn update(i: u32, gradient: f32) {
    let g = gradient + hyper.weight_decay * parameters[i];
    let b = hyper.momentum * state[i] + g;
    state[i] = b;
    let direction = select(b, g + hyper.momentum * b, hyper.nesterov != 0u);
    parameters[i] -= hyper.learning_rate * direction;
}
