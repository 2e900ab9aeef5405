// Every operator schema of genimg_fast, in one place.  Implementations register themselves per device in cpu/ and
// cuda/.
#include <torch/csrc/stable/library.h>
#include <torch/headeronly/version.h>

#include "build_info.h"

// Version of the torch that was compiled against, then the C++ compiler.
GENIMG_FAST_EXPORT const char* genimg_fast_build_info() {
  return TORCH_VERSION ";"
#if defined(__clang__)
      __VERSION__;
#else
      "GCC " __VERSION__;
#endif
}

STABLE_TORCH_LIBRARY(genimg_fast, m) {
  // Batch norm with batch statistics, + residual, then activation (0 identity, 1 relu, 2 leaky_relu, 3 silu).
  // mean and invstd (one value per channel, float32 or float64) are what backward needs; running statistics are updated
  // in place.  These and weight and bias may be of the input's dtype, if that has 16 bits, or wide like mean.
  m.def(
      "batch_norm_act_train(Tensor input, Tensor? residual, Tensor? weight, Tensor? bias, "
      "Tensor(a!)? running_mean, Tensor(b!)? running_var, float momentum, float eps, "
      "int activation, float negative_slope) -> (Tensor output, Tensor mean, Tensor invstd)");
  // The same as a pure function, which autograd under torch.compile needs: with the batch's unbiased variance.
  m.def(
      "batch_norm_act_train_functional(Tensor input, Tensor? residual, Tensor? weight, Tensor? bias, float eps, "
      "int activation, float negative_slope) -> (Tensor output, Tensor mean, Tensor invstd, Tensor var)");
  // Batch norm with running statistics, + residual, then activation.
  m.def(
      "batch_norm_act_eval(Tensor input, Tensor? residual, Tensor? weight, Tensor? bias, "
      "Tensor running_mean, Tensor running_var, float eps, int activation, float negative_slope) -> Tensor");
  // Gradients of both; `training` says whether mean and invstd depend on input.
  // A gradient that is not needed comes back as an empty tensor; grad_weight and grad_bias are always computed, and as
  // wide as mean.
  m.def(
      "batch_norm_act_backward(Tensor grad_output, Tensor input, Tensor? residual, Tensor? weight, Tensor? bias, "
      "Tensor mean, Tensor invstd, bool training, int activation, float negative_slope, "
      "bool need_input, bool need_residual) "
      "-> (Tensor grad_input, Tensor grad_residual, Tensor grad_weight, Tensor grad_bias)");
  // activation(group_norm(input) * (1 + scale) + shift + residual), activations 0 identity, 1 relu, 2 leaky_relu, 3
  // silu. weight and bias are (C,), scale and shift (N, C), each of the input's dtype, if that has 16 bits, or wide
  // like mean.  Output and residual are of the input's dtype, or wide (wide_output, for CUDA only).  mean and invstd,
  // (N, num_groups) in float32 or float64, are what backward needs.
  m.def(
      "group_norm_act(Tensor input, Tensor? residual, Tensor? weight, Tensor? bias, Tensor? scale, Tensor? shift, "
      "int num_groups, float eps, int activation, float negative_slope, bool wide_output) "
      "-> (Tensor output, Tensor mean, Tensor invstd)");
  // Its gradients.  Those that are not needed come back as empty tensors; those of the parameters, as wide as mean, are
  // needed all or none.
  m.def(
      "group_norm_act_backward(Tensor grad_output, Tensor input, Tensor? residual, Tensor? weight, Tensor? bias, "
      "Tensor? scale, Tensor? shift, Tensor mean, Tensor invstd, int num_groups, int activation, "
      "float negative_slope, bool need_input, bool need_residual, bool need_parameters) "
      "-> (Tensor grad_input, Tensor grad_residual, Tensor grad_weight, Tensor grad_bias, Tensor grad_scale, "
      "Tensor grad_shift)");
  // Convolutions between an image of at most four channels, (N, Ci, H, W), and features, (N, Cf, h, w); weight is
  // (Cf, Ci, kh, kw), data and parameters are as above, activations go on with 4 tanh, 5 sigmoid.
  // features = activation(conv2d(image, weight) + bias).
  m.def(
      "image_conv_from(Tensor image, Tensor weight, Tensor? bias, int[] stride, int[] padding, int activation, "
      "float negative_slope) -> Tensor");
  // image = activation(conv_transpose2d(features, weight) + bias), of the given size.  Without bias and activation it
  // is the gradient of image_conv_from at the image.
  m.def(
      "image_conv_to(Tensor features, Tensor weight, Tensor? bias, int[] stride, int[] padding, int[] size, "
      "int activation, float negative_slope) -> Tensor");
  // The gradient of both at the weight, in float32.
  m.def("image_conv_weight(Tensor image, Tensor features, int[] kernel, int[] stride, int[] padding) -> Tensor");
  // z = mu + exp(logvar / 2) * noise and the KL divergence of N(mu, exp(logvar)) from the prior (N(0, 1) without one),
  // per sample or per element.  Exactly one of noise and seed is given; seed is a 0-dimensional int64 tensor.  Every
  // other tensor has mu's shape.  logvar is clamped first; -inf and inf switch that off, free_bits = 0 the lower bound
  // of each element's divergence.
  m.def(
      "reparameterize_kl(Tensor mu, Tensor logvar, Tensor? noise, Tensor? seed, Tensor? prior_mu, "
      "Tensor? prior_logvar, float logvar_min, float logvar_max, float free_bits, bool per_element) "
      "-> (Tensor z, Tensor kl)");
  // Its gradients, with the noise generated again.  grad_z and grad_kl: None is zero.
  // A gradient that is not needed comes back as an empty tensor; grad_mu and grad_logvar are always computed.
  m.def(
      "reparameterize_kl_backward(Tensor? grad_z, Tensor? grad_kl, Tensor mu, Tensor logvar, Tensor? noise, "
      "Tensor? seed, Tensor? prior_mu, Tensor? prior_logvar, float logvar_min, float logvar_max, float free_bits, "
      "bool per_element, bool need_noise, bool need_prior) "
      "-> (Tensor grad_mu, Tensor grad_logvar, Tensor grad_noise, Tensor grad_prior_mu, Tensor grad_prior_logvar)");

  // Recurrent layers (cell: 0 tanh RNN, 1 relu RNN, 2 GRU, 3 LSTM) over all steps, each over the output of the one
  // before: input is (T, B, I), or (N, I) with batch_sizes, the rows of each step as in PackedSequence; states are
  // (layers * directions, B, H); weights has weight_ih, weight_hh and, all or none, bias_ih, bias_hh of each layer and
  // direction, shaped and ordered as in torch.nn.  The first direction goes from the last step to the first if
  // `reverse`, the second one, there if `bidirectional`, the other way.  c_n is empty unless the cell is an LSTM.
  // kept is empty unless `keep`, else what backward needs: the outputs of all layers, the last one's a second time,
  // since whoever gets `output` may change it; then, if R > 0, a reserve (rows, R*H) of each layer and direction.
  m.def(
      "recurrent(Tensor input, Tensor h0, Tensor? c0, Tensor? batch_sizes, Tensor[] weights, int cell, "
      "bool bidirectional, bool reverse, bool keep) -> (Tensor output, Tensor h_n, Tensor c_n, Tensor[] kept)");
  // Its gradients, from weights without the biases.  Those that are not needed come back empty, and grad_weights
  // without tensors; else it has those of the biases, too, if `biased`.
  m.def(
      "recurrent_backward(Tensor? grad_output, Tensor? grad_h_n, Tensor? grad_c_n, Tensor input, Tensor h0, "
      "Tensor? c0, Tensor? batch_sizes, Tensor[] kept, Tensor[] weights, int cell, bool bidirectional, bool reverse, "
      "bool biased, bool need_input, bool need_weights) "
      "-> (Tensor grad_input, Tensor grad_h0, Tensor grad_c0, Tensor[] grad_weights)");
  // The recurrence of one layer, on CUDA, where torch's products project the input; lists have one tensor of each
  // direction.  gates are (T, B, G*H), or (N, G*H) with batch_sizes, and hold all biases but bias_n, GRU's within the
  // reset gate; states are (directions, B, H), output (T, B, directions*H) or (N, directions*H).  reserve (rows, R*H)
  // is what backward needs; without tensors, it is not kept.
  m.def(
      "recurrent_steps(Tensor[] gates, Tensor h0, Tensor? c0, Tensor[] weight_hh, Tensor[] bias_n, "
      "Tensor? batch_sizes, int cell, bool reverse, Tensor(a!) output, Tensor(b!) h_n, Tensor(c!)? c_n, "
      "Tensor(d!)[] reserve) -> ()");
  // Gradients at the gates, at GRU's W_n h + b_n, which others do not have, and at the initial states.  Those of
  // weight_hh and the biases are products of these with output and h0.
  m.def(
      "recurrent_steps_backward(Tensor? grad_output, Tensor? grad_h_n, Tensor? grad_c_n, Tensor output, "
      "Tensor[] reserve, Tensor h0, Tensor? c0, Tensor[] weight_hh, Tensor? batch_sizes, int cell, bool reverse, "
      "Tensor(a!)[] grad_gates, Tensor(b!)[] grad_hidden_n, Tensor(c!) grad_h0, Tensor(d!)? grad_c0) -> ()");
  // The elementwise part of one step, for cells and ConvLSTM: gates along dimension 1, i f g o and r z n.
  m.def("lstm_cell_update(Tensor gates, Tensor c) -> (Tensor h, Tensor c_new)");
  m.def(
      "lstm_cell_update_backward(Tensor? grad_h, Tensor? grad_c_new, Tensor gates, Tensor c) "
      "-> (Tensor grad_gates, Tensor grad_c)");
  m.def("gru_cell_update(Tensor gates_x, Tensor gates_h, Tensor h) -> Tensor");
  m.def(
      "gru_cell_update_backward(Tensor grad, Tensor gates_x, Tensor gates_h, Tensor h) "
      "-> (Tensor grad_gates_x, Tensor grad_gates_h, Tensor grad_h)");
  // Convolutions with fewer products, on the CPU, in float32: 4 x 4 kernels have stride 2 and padding 1, 3 x 3 kernels
  // stride 1 and padding 1.  Heights and widths of the finer side are even, numbers of channels multiples of 32.
  // Results are channels_last.  Each is linear in its tensors, and the gradients of one are calls of the others.
  m.def("winograd_conv2d(Tensor input, Tensor weight, Tensor? bias) -> Tensor");
  m.def("winograd_conv_transpose2d(Tensor input, Tensor weight, Tensor? bias) -> Tensor");
  m.def("winograd_conv2d_weight_gradient(Tensor input, Tensor grad_output, int kernel_size) -> Tensor");
  // Convolutions in bfloat16 between an image (N, Ci, H, W) and features (N, Cf, h, w), as above, on CPUs that have
  // products of bfloat16; numbers of channels are multiples of 32.  Results are channels_last.
  // To the features, or, with the image's size, transposed to the image; weight (Cf, Ci, kh, kw) may be float32.
  m.def("bf16_conv(Tensor input, Tensor weight, int[] stride, int[] padding, int[] size) -> Tensor");
  // The gradient of both at the weight, in float32.
  m.def("bf16_conv_weight(Tensor image, Tensor features, int[] kernel, int[] stride, int[] padding) -> Tensor");
}
