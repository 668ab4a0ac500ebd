// Classify images with an exported model: classify model.pt image.png ...

#include <torch/script.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>
#define STB_IMAGE_IMPLEMENTATION
#include <stb/stb_image.h>

using Bytes = std::vector<uint8_t>;

// For each new pixel, the first old pixel that it depends on, and the weights of that pixel and the next ones.
struct Weights {
  int start;
  std::vector<int> values;
};
constexpr int bits = 22;  // Pillow multiplies 8-bit pixels by weights in fixed point
constexpr int64_t most_pixels = 150'000'000;
constexpr int ratio_limit = 64;  // of a longer image only the middle counts, so that resizing doesn't make it huge
constexpr int largest_side = 16384;  // of the network's input

// Raises for what is no regular file: reading a pipe would wait for ever.
void check_file(const std::string& path) {
  if (!std::filesystem::exists(path)) throw std::runtime_error(path + ": no such file");
  if (!std::filesystem::is_regular_file(path)) throw std::runtime_error(path + ": it is not a file");
}

// What an exported file says about its images.
struct Facts {
  std::vector<int> input_size;  // channels, height, width
  std::vector<float> mean, std;
  double crop_pct;
  bool cubic;
  std::vector<std::string> class_names;
};

Facts read_facts(const std::string& text) {
  const auto found = nlohmann::json::parse(text, nullptr, false);
  if (!found.is_object() || !found.contains("input_size"))
    throw std::runtime_error("it has no metadata of an image size; `nf-zoo export` writes such a file");
  Facts facts;
  try {
    found.at("input_size").get_to(facts.input_size);
    found.at("mean").get_to(facts.mean);
    found.at("std").get_to(facts.std);
    found.at("crop_pct").get_to(facts.crop_pct);
    if (found.contains("class_names")) found.at("class_names").get_to(facts.class_names);
    const std::string interpolation = found.at("interpolation");
    if (found.at("crop_mode") != "center" || (interpolation != "bicubic" && interpolation != "bilinear"))
      throw std::runtime_error("only crop_mode center, and interpolation bilinear or bicubic, are supported");
    facts.cubic = interpolation == "bicubic";
  } catch (const nlohmann::json::exception&) {
    throw std::runtime_error("its metadata are damaged");
  }
  const auto& size = facts.input_size;
  const auto is_side = [](int side) { return 0 < side && side <= largest_side; };
  if (size.size() != 3 || !std::all_of(size.begin(), size.end(), is_side) || (size[0] != 1 && size[0] != 3) ||
      facts.mean.size() != size_t(size[0]) || facts.std.size() != size_t(size[0]) ||
      !(facts.crop_pct > 0.01 && facts.crop_pct <= 1))
    throw std::runtime_error("its metadata are damaged");
  return facts;
}

// Text from a file in one line, without control characters, which could move a terminal's cursor.
std::string printable(std::string text) {
  for (size_t i = 0; i < text.size(); ++i) {
    const unsigned char c = text[i], next = i + 1 < text.size() ? text[i + 1] : 0;
    if (c < 32 || c == 127 || (c == 0xc2 && 0x80 <= next && next < 0xa0)) text[i] = '?';  // C1 controls have two bytes
    if (c == 0xc2 && 0x80 <= next && next < 0xa0) text.erase(i + 1, 1);
  }
  return text;
}

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

// The image over white, or the middle of a very long one: PNG, JPEG, PPM, PGM, BMP or GIF.
Bytes read(const std::string& path, int channels, int& width, int& height) {
  check_file(path);
  int columns, rows;
  if (stbi_info(path.c_str(), &columns, &rows, nullptr) && int64_t(columns) * rows > most_pixels)
    throw std::runtime_error(path + ": it has more than 150,000,000 pixels");
  std::unique_ptr<uint8_t, void (*)(void*)> rgba(stbi_load(path.c_str(), &columns, &rows, nullptr, 4), stbi_image_free);
  if (!rgba) throw std::runtime_error(path + ": " + stbi_failure_reason());
  const int64_t side = int64_t(ratio_limit) * std::min(columns, rows);
  const int left = std::max<int64_t>(0, columns - side) / 2, top = std::max<int64_t>(0, rows - side) / 2;
  width = columns - 2 * left;
  height = rows - 2 * top;
  Bytes out;
  for (int row = 0; row < height; ++row) {
    const uint8_t* pixel = rgba.get() + 4 * (size_t(top + row) * columns + left);
    for (const uint8_t* end = pixel + size_t(4) * width; pixel < end; pixel += 4) {
      int rgb[3];
      for (int c = 0; c < 3; ++c) rgb[c] = (pixel[c] * pixel[3] + 255 * (255 - pixel[3]) + 127) / 255;
      if (channels == 1) out.push_back((rgb[0] * 19595 + rgb[1] * 38470 + rgb[2] * 7471 + 32768) >> 16);
      else out.insert(out.end(), rgb, rgb + 3);
    }
  }
  return out;
}

// The network's input, resized and cropped to the last bit as Pillow, torchvision and timm do it.
torch::Tensor prepare(const std::string& path, const Facts& facts) {
  const int channels = facts.input_size[0], size[] = {facts.input_size[1], facts.input_size[2]};
  int sides[2], goal[2], whole[2];
  Bytes pixels = read(path, channels, sides[1], sides[0]);

  for (int i : {0, 1}) goal[i] = std::floor(size[i] / facts.crop_pct);
  const double ratio = std::min(double(sides[0]) / goal[0], double(sides[1]) / goal[1]);
  const int64_t shorter = std::min(sides[0], sides[1]);
  for (int i : {0, 1}) whole[i] = goal[0] == goal[1] ? goal[0] * sides[i] / shorter : std::nearbyint(sides[i] / ratio);

  const auto along = [&](int i) {
    const auto all = weigh(sides[i], whole[i], facts.cubic);
    const auto first = all.begin() + std::lrint((whole[i] - size[i]) / 2.0);
    pixels = resample(pixels, sides[i], i == 0 ? pixels.size() / sides[0] : channels, {first, first + size[i]});
  };
  // Pillow 13 resizes the height first if it shrinks by far more pixels. Each step rounds, so the order matters.
  const bool tall = sides[0] - whole[0] > std::max(0, 2 * (sides[1] - whole[1]));
  along(tall ? 0 : 1);
  along(tall ? 1 : 0);

  const auto per_channel = [&](const std::vector<float>& values) { return torch::tensor(values).view({-1, 1, 1}); };
  const auto image = torch::from_blob(pixels.data(), {size[0], size[1], channels}, torch::kUInt8).permute({2, 0, 1});
  return ((image / 255 - per_channel(facts.mean)) / per_channel(facts.std)).unsqueeze(0);
}

// LibTorch's errors have a stack trace, of which the user needs the first line.
template <typename Work>
auto about(const std::string& path, Work work) {
  try {
    return work();
  } catch (const c10::Error& error) {
    throw std::runtime_error(path + ": " + error.what_without_backtrace());
  } catch (const std::exception& error) {
    throw std::runtime_error(path + ": " + error.what());
  }
}

int main(int count, char** arguments) try {
  if (count < 3) throw std::runtime_error("usage: classify model.pt image.png ...");
  const std::string model = arguments[1];
  check_file(model);
  torch::jit::ExtraFilesMap files{{"nf_zoo.json", ""}};
  auto network = about(model, [&] { return torch::jit::load(model, torch::kCPU, files); });
  const auto facts = about(model, [&] { return read_facts(files["nf_zoo.json"]); });

  c10::InferenceMode inference;
  for (int i = 2; i < count; ++i) {
    const auto input = prepare(arguments[i], facts);
    const auto odds = about(model, [&] { return network.forward({input}).toTensor()[0].softmax(0); });
    const auto [values, classes] = odds.topk(std::min<int64_t>(5, odds.size(0)));
    std::printf("%s\n", arguments[i]);
    for (int64_t k = 0; k < values.size(0); ++k) {
      const auto index = classes[k].item<int64_t>();
      const auto known = index < int64_t(facts.class_names.size());
      const auto name = known ? printable(facts.class_names[index]) : std::to_string(index);
      std::printf("  %.6f  %s\n", values[k].item<double>(), name.c_str());
    }
  }
} catch (const std::exception& error) {
  const std::string text = error.what();
  std::fprintf(stderr, "%s\n", printable(text.substr(0, text.find('\n'))).c_str());
  return 2;
}
