#pragma once
// The recurrent cells, for host and device code: no torch, no CUDA header.

namespace genimg_fast {

enum class Cell : int { rnn_tanh = 0, rnn_relu = 1, gru = 2, lstm = 3 };

// Gates of a hidden unit.  GRU: r z n; LSTM: i f g o.
constexpr int gate_count(Cell cell) { return cell == Cell::lstm ? 4 : cell == Cell::gru ? 3 : 1; }

// Values of a hidden unit and step that backward needs beside the output.  GRU: r z n hn, with hn = W_n h + b_n;
// LSTM: i f g o c.
constexpr int reserve_count(Cell cell) { return cell == Cell::lstm ? 5 : cell == Cell::gru ? 4 : 0; }

}  // namespace genimg_fast
