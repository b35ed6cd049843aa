// AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101), as in torch.optim.AdamW: the weight decay shrinks the parameter
// directly, and does not enter the moments.

fn update(i: u32, gradient: f32) {
    let decayed = parameters[i] * (1.0 - hyper.learning_rate * hyper.weight_decay);
    parameters[i] = decayed - hyper.learning_rate * adam_direction(i, gradient);
}
