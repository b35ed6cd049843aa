// Adam (Kingma and Ba 2015, arXiv:1412.6980) with L2 regularisation, as in torch.optim.Adam: the weight decay is added
// to the gradient, and so enters the moments.

fn update(i: u32, gradient: f32) {
    let g = gradient + hyper.weight_decay * parameters[i];
    parameters[i] -= hyper.learning_rate * adam_direction(i, g);
}
