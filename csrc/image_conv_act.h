#pragma once
// Host side of image_conv_act: argument checks and shapes.
//
// A convolution between an image of at most four channels, (N, Ci, H, W), and features, (N, Cf, h, w), in either
// direction; weight is (Cf, Ci, kh, kw), as torch.nn.Conv2d(Ci, Cf) and torch.nn.ConvTranspose2d(Cf, Ci) have it.
#include <vector>

#include "norm_act.h"

namespace genimg_fast {

constexpr int64_t max_image_channels = 4, max_kernel = 9, max_stride = 4;

// Rows or columns: position i of the features meets positions i * stride - padding + [0, kernel) of the image.
struct ConvAxis {
  int64_t image, features, kernel, stride, padding;

  int64_t features_of_image() const { return (image + 2 * padding - kernel) / stride + 1; }
};

struct ConvShape {
  int64_t samples, image_channels, channels;  // the latter: of the features
  ConvAxis y, x;

  int64_t taps() const { return image_channels * y.kernel * x.kernel; }  // products that meet one feature
  int64_t products() const { return samples * y.features * x.features * channels * taps(); }
};

struct ImageConvArguments {
  const Tensor* image;         // what an operator computes is null
  const Tensor* features;      // likewise
  const Tensor* weight;        // likewise
  const OptionalTensor* bias;  // or null
  const std::vector<int64_t>&kernel, &stride, &padding;
  int64_t activation;

  // `size` is the image's where there is none.
  ConvShape check(const std::vector<int64_t>* size = nullptr) const {
    const Tensor& given = image ? *image : *features;
    for (const std::vector<int64_t>* pair : {&kernel, &stride, &padding, size ? size : &stride})
      GENIMG_FAST_CHECK(pair->size() == 2, "image_conv_act: kernel, stride, padding and size must have two values");
    for (int d = 0; d < 2; ++d) {
      GENIMG_FAST_CHECK(kernel[d] >= 1 && kernel[d] <= max_kernel, "image_conv_act: a kernel of 1 to ", max_kernel,
                        " pixels is supported, got ", kernel[d]);
      GENIMG_FAST_CHECK(stride[d] >= 1 && stride[d] <= max_stride, "image_conv_act: a stride of 1 to ", max_stride,
                        " is supported, got ", stride[d]);
      GENIMG_FAST_CHECK(padding[d] >= 0 && padding[d] < kernel[d],
                        "image_conv_act: padding must be less than the kernel, got ", padding[d]);
    }
    GENIMG_FAST_CHECK(activation >= 0 && activation <= 5,
                      "image_conv_act: activation must be 0 (identity), 1 (relu), 2 (leaky_relu), 3 (silu), 4 (tanh) "
                      "or 5 (sigmoid), got ",
                      activation);
    if (image) check_data(*image, given, "image");
    if (features) check_data(*features, given, "features");
    ConvShape shape{given.size(0), 0, 0, {}, {}};
    shape.image_channels = image ? image->size(1) : weight->size(1);
    shape.channels = features ? features->size(1) : weight->size(0);
    shape.y = axis(0, size);
    shape.x = axis(1, size);
    GENIMG_FAST_CHECK(shape.image_channels >= 1 && shape.image_channels <= max_image_channels,
                      "image_conv_act: an image of 1 to ", max_image_channels, " channels is supported, got ",
                      shape.image_channels);
    if (image && features)
      GENIMG_FAST_CHECK(features->size(0) == image->size(0), "image_conv_act: features must have the image's ",
                        image->size(0), " samples, got ", shape_of(*features));
    if (weight) check_parameters(given, shape);
    return shape;
  }

 private:
  ConvAxis axis(int d, const std::vector<int64_t>* size) const {
    ConvAxis a{image ? image->size(2 + d) : (*size)[d], 0, kernel[d], stride[d], padding[d]};
    GENIMG_FAST_CHECK(a.image >= 1 && a.image + 2 * a.padding >= a.kernel,
                      "image_conv_act: a padded image must be at least as large as the kernel, got ", a.image,
                      " + 2 * ", a.padding, " against ", a.kernel);
    a.features = a.features_of_image();
    GENIMG_FAST_CHECK(!features || features->size(2 + d) == a.features, "image_conv_act: features of size ", a.features,
                      " belong to an image of ", a.image, ", got ", features ? shape_of(*features) : "");
    return a;
  }
  static void check_data(const Tensor& t, const Tensor& given, const char* name) {
    GENIMG_FAST_CHECK(t.dim() == 4, "image_conv_act: ", name, " must have 4 dimensions, got ", t.dim());
    GENIMG_FAST_CHECK(t.scalar_type() == ScalarType::Float || t.scalar_type() == ScalarType::BFloat16,
                      "image_conv_act: ", name, " must be float32 or bfloat16");
    GENIMG_FAST_CHECK(t.scalar_type() == given.scalar_type() && t.device() == given.device(),
                      "image_conv_act: features must have the image's dtype and device");
    GENIMG_FAST_CHECK(is_dense(t, MemoryFormat::Contiguous) || is_dense(t, MemoryFormat::ChannelsLast),
                      "image_conv_act: ", name, " must be contiguous, in NCHW or channels_last");
  }
  void check_parameters(const Tensor& given, const ConvShape& shape) const {
    const auto check = [&](const Tensor& t, const char* name) {
      GENIMG_FAST_CHECK(t.device() == given.device(), "image_conv_act: ", name, " must be on the data's device");
      GENIMG_FAST_CHECK(t.scalar_type() == given.scalar_type() || t.scalar_type() == ScalarType::Float,
                        "image_conv_act: ", name, " must have the data's dtype, or float32");
    };
    check(*weight, "weight");
    GENIMG_FAST_CHECK(weight->dim() == 4 && weight->size(0) == shape.channels &&
                          weight->size(1) == shape.image_channels && weight->size(2) == shape.y.kernel &&
                          weight->size(3) == shape.x.kernel,
                      "image_conv_act: weight must have shape (features' channels, image's channels, kh, kw), got ",
                      shape_of(*weight));
    if (!bias || !*bias) return;
    check(**bias, "bias");
    const int64_t channels = image ? shape.channels : shape.image_channels;
    GENIMG_FAST_CHECK((*bias)->dim() == 1 && (*bias)->size(0) == channels, "image_conv_act: bias must have shape (",
                      channels, ",), got ", shape_of(**bias));
  }
};

}  // namespace genimg_fast
