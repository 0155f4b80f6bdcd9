(module
  (import "m" "m" (memory 1))

  ;; out[n] = rows[n] . vector + bias[n], all float32; four rows at a time, four channels at a time.
  ;; width: bytes of a row, a multiple of 16; count: rows, a multiple of 4.
  (func (export "dot")
    (param $rows i32) (param $vector i32) (param $bias i32) (param $out i32)
    (param $count i32) (param $width i32)
    (local $end i32) (local $c i32) (local $row i32) (local $v v128)
    (local $a v128) (local $b v128) (local $x v128) (local $y v128)
    (local.set $end (i32.add (local.get $out) (i32.shl (local.get $count) (i32.const 2))))
    (block $done
      (loop $items
        (br_if $done (i32.ge_u (local.get $out) (local.get $end)))
        (local.set $a (v128.const i32x4 0 0 0 0))
        (local.set $b (v128.const i32x4 0 0 0 0))
        (local.set $x (v128.const i32x4 0 0 0 0))
        (local.set $y (v128.const i32x4 0 0 0 0))
        (local.set $c (i32.const 0))
        (block $summed
          (loop $channels
            (br_if $summed (i32.ge_u (local.get $c) (local.get $width)))
            (local.set $v (v128.load (i32.add (local.get $vector) (local.get $c))))
            (local.set $row (i32.add (local.get $rows) (local.get $c)))
            (local.set $a (f32x4.add (local.get $a)
              (f32x4.mul (v128.load (local.get $row)) (local.get $v))))
            (local.set $row (i32.add (local.get $row) (local.get $width)))
            (local.set $b (f32x4.add (local.get $b)
              (f32x4.mul (v128.load (local.get $row)) (local.get $v))))
            (local.set $row (i32.add (local.get $row) (local.get $width)))
            (local.set $x (f32x4.add (local.get $x)
              (f32x4.mul (v128.load (local.get $row)) (local.get $v))))
            (local.set $row (i32.add (local.get $row) (local.get $width)))
            (local.set $y (f32x4.add (local.get $y)
              (f32x4.mul (v128.load (local.get $row)) (local.get $v))))
            (local.set $c (i32.add (local.get $c) (i32.const 16)))
            (br $channels)))
        ;; The sums of the four channels of each row, in the order of the rows.
        (local.set $v (f32x4.add
          (i8x16.shuffle 0 1 2 3 16 17 18 19 4 5 6 7 20 21 22 23 (local.get $a) (local.get $b))
          (i8x16.shuffle 8 9 10 11 24 25 26 27 12 13 14 15 28 29 30 31 (local.get $a) (local.get $b))))
        (local.set $x (f32x4.add
          (i8x16.shuffle 0 1 2 3 16 17 18 19 4 5 6 7 20 21 22 23 (local.get $x) (local.get $y))
          (i8x16.shuffle 8 9 10 11 24 25 26 27 12 13 14 15 28 29 30 31 (local.get $x) (local.get $y))))
        (v128.store (local.get $out) (f32x4.add (v128.load (local.get $bias)) (f32x4.add
          (i8x16.shuffle 0 1 2 3 4 5 6 7 16 17 18 19 20 21 22 23 (local.get $v) (local.get $x))
          (i8x16.shuffle 8 9 10 11 12 13 14 15 24 25 26 27 28 29 30 31 (local.get $v) (local.get $x)))))
        (local.set $rows (i32.add (local.get $rows) (i32.shl (local.get $width) (i32.const 2))))
        (local.set $bias (i32.add (local.get $bias) (i32.const 16)))
        (local.set $out (i32.add (local.get $out) (i32.const 16)))
        (br $items))))

  ;; rows[n] *= steps[n]; count: rows; width as above.
  (func (export "scale") (param $rows i32) (param $steps i32) (param $count i32) (param $width i32)
    (local $end i32) (local $stop i32) (local $step v128)
    (local.set $end (i32.add (local.get $steps) (i32.shl (local.get $count) (i32.const 2))))
    (block $done
      (loop $items
        (br_if $done (i32.ge_u (local.get $steps) (local.get $end)))
        (local.set $step (v128.load32_splat (local.get $steps)))
        (local.set $stop (i32.add (local.get $rows) (local.get $width)))
        (loop $channels
          (v128.store (local.get $rows) (f32x4.mul (v128.load (local.get $rows)) (local.get $step)))
          (local.set $rows (i32.add (local.get $rows) (i32.const 16)))
          (br_if $channels (i32.lt_u (local.get $rows) (local.get $stop))))
        (local.set $steps (i32.add (local.get $steps) (i32.const 4)))
        (br $items)))))
