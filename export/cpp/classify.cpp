// Classify images with an exported model: classify model.pt image.png ...

#include <torch/script.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>
#define STB_IMAGE_IMPLEMENTATION
#include <stb/stb_image.h>

using Bytes = std::vector<uint8_t>;

// For each new pixel, the first old one that counts, and how much it and those after it do.
struct Weights {
  int start;
  std::vector<int> values;
};
constexpr int bits = 22;  // Pillow weighs 8-bit pixels in fixed point

double bilinear(double x) { return x < 1 ? 1 - x : 0; }

double bicubic(double x) {
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
}

std::vector<Weights> weigh(int from, int to, bool cubic) {
  const double scale = double(from) / to, stretch = std::max(scale, 1.0), reach = (cubic ? 2 : 1) * stretch;
  std::vector<Weights> all;
  for (int i = 0; i < to; ++i) {
    const double center = (i + 0.5) * scale;
    const int start = std::max(0, int(center - reach + 0.5)), end = std::min(from, int(center + reach + 0.5));
    std::vector<double> values;
    double sum = 0;
    for (int k = start; k < end; ++k) {
      const double distance = std::abs(k - center + 0.5) / stretch;
      sum += values.emplace_back(cubic ? bicubic(distance) : bilinear(distance));
    }
    all.push_back({start, {}});
    for (double value : values) all.back().values.push_back(std::round(value / sum * (1 << bits)));
  }
  return all;
}

// Resamples the middle one of three dimensions.
Bytes resample(const Bytes& pixels, size_t length, size_t inner, const std::vector<Weights>& weighted) {
  Bytes out;
  for (auto line = pixels.begin(); line < pixels.end(); line += length * inner) {
    for (const auto& [start, values] : weighted) {
      for (size_t i = 0; i < inner; ++i) {
        auto pixel = line + start * inner + i;
        int sum = 1 << (bits - 1);
        for (size_t k = 0; k < values.size(); ++k) sum += pixel[k * inner] * values[k];
        out.push_back(std::clamp(sum >> bits, 0, 255));
      }
    }
  }
  return out;
}

// The image over white: PNG, JPEG, PPM, PGM, BMP or GIF.
Bytes read(const char* path, int channels, int& width, int& height) {
  std::unique_ptr<uint8_t, void (*)(void*)> rgba(stbi_load(path, &width, &height, nullptr, 4), stbi_image_free);
  if (!rgba) throw std::runtime_error(std::string("cannot read the image ") + path + ": " + stbi_failure_reason());
  Bytes out;
  for (const uint8_t *pixel = rgba.get(), *end = pixel + size_t(4) * width * height; pixel < end; pixel += 4) {
    int rgb[3];
    for (int c = 0; c < 3; ++c) rgb[c] = (pixel[c] * pixel[3] + 255 * (255 - pixel[3]) + 127) / 255;
    if (channels == 1) out.push_back((rgb[0] * 19595 + rgb[1] * 38470 + rgb[2] * 7471 + 32768) >> 16);
    else out.insert(out.end(), rgb, rgb + 3);
  }
  return out;
}

// The network's input, resized and cropped to the last bit as Pillow, torchvision and timm do it.
torch::Tensor prepare(const char* path, const nlohmann::json& facts) {
  const std::vector<int> input = facts.at("input_size");
  const int channels = input[0], size[] = {input[1], input[2]};
  int sides[2], goal[2], whole[2];
  Bytes pixels = read(path, channels, sides[1], sides[0]);

  for (int i : {0, 1}) goal[i] = std::floor(size[i] / facts.at("crop_pct").get<double>());
  const double ratio = std::min(double(sides[0]) / goal[0], double(sides[1]) / goal[1]);
  const int64_t shorter = std::min(sides[0], sides[1]);
  for (int i : {0, 1}) whole[i] = goal[0] == goal[1] ? goal[0] * sides[i] / shorter : std::nearbyint(sides[i] / ratio);

  const auto along = [&](int i) {
    const auto all = weigh(sides[i], whole[i], facts.at("interpolation") == "bicubic");
    const auto first = all.begin() + std::lrint((whole[i] - size[i]) / 2.0);
    pixels = resample(pixels, sides[i], i == 0 ? pixels.size() / sides[0] : channels, {first, first + size[i]});
  };
  // Pillow 13 begins with the height where that shrinks by far more pixels; each step rounds, so it matters.
  const bool tall = sides[0] - whole[0] > std::max(0, 2 * (sides[1] - whole[1]));
  along(tall ? 0 : 1);
  along(tall ? 1 : 0);

  const auto per_channel = [&](const char* key) {
    return torch::tensor(facts.at(key).get<std::vector<float>>()).view({-1, 1, 1});
  };
  const auto image = torch::from_blob(pixels.data(), {size[0], size[1], channels}, torch::kUInt8).permute({2, 0, 1});
  return ((image / 255 - per_channel("mean")) / per_channel("std")).unsqueeze(0);
}

int main(int count, char** arguments) try {
  if (count < 3) throw std::runtime_error("usage: classify model.pt image.png ...");
  torch::jit::ExtraFilesMap files{{"nf_zoo.json", ""}};
  auto network = [&] {
    try {
      return torch::jit::load(arguments[1], torch::kCPU, files);
    } catch (const c10::Error& error) {  // with a stack trace, of which the user needs the first line
      throw std::runtime_error(std::string("cannot load ") + arguments[1] + ": " + error.what_without_backtrace());
    }
  }();
  const auto facts = nlohmann::json::parse(files["nf_zoo.json"]);
  if (facts.at("crop_mode") != "center" || (facts.at("interpolation") != "bicubic" && facts.at("interpolation") != "bilinear"))
    throw std::runtime_error("only crop_mode center, and interpolation bilinear or bicubic, are supported");

  c10::InferenceMode inference;
  for (int i = 2; i < count; ++i) {
    const auto odds = network.forward({prepare(arguments[i], facts)}).toTensor()[0].softmax(0);
    const auto [values, classes] = odds.topk(std::min<int64_t>(5, odds.size(0)));
    std::printf("%s\n", arguments[i]);
    for (int64_t k = 0; k < values.size(0); ++k) {
      const auto index = classes[k].item<int64_t>();
      const auto name = facts.contains("class_names") ? facts["class_names"][index].get<std::string>() : std::to_string(index);
      std::printf("  %.6f  %s\n", values[k].item<double>(), name.c_str());
    }
  }
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
