package main

import (
	"errors"
	"math"
	"strconv"
	"strings"
)

// Amounts as people write them: the flag values of sizes, rates and shares. They
// are strict, because a slip would be a cache a thousand times too large: no bare
// numbers, no decimal comma, no unit that could mean two things.

// bytesOf are the units of a size.
var bytesOf = map[string]float64{
	"B":  1,
	"KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12,
	"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40,
}

// bitsOf are the units in which lines are sold.
var bitsOf = map[string]float64{"KBIT": 1e3 / 8, "MBIT": 1e6 / 8, "GBIT": 1e9 / 8}

var errAmount = errors.New("not an amount")

// parseAmount reads "1.5 GiB" with the given units; "0" needs none. The result
// is whole bytes.
func parseAmount(text string, units ...map[string]float64) (int64, error) {
	text = strings.TrimSpace(text)
	if text == "0" {
		return 0, nil
	}
	end := strings.IndexFunc(text, func(r rune) bool { return r != '.' && (r < '0' || r > '9') })
	if end <= 0 {
		return 0, errAmount
	}
	n, err := strconv.ParseFloat(text[:end], 64)
	if err != nil {
		return 0, errAmount
	}
	unit := strings.ToUpper(strings.TrimSpace(text[end:]))
	for _, table := range units {
		if per, ok := table[unit]; ok {
			if n *= per; n >= math.MaxInt64/2 {
				return 0, errAmount
			}
			return int64(n), nil
		}
	}
	return 0, errAmount
}

// size is a number of bytes: "20 GiB".
type size int64

func (s *size) Set(text string) error {
	n, err := parseAmount(text, bytesOf)
	if err == nil {
		*s = size(n)
	}
	return err
}

func (s *size) String() string {
	if *s == 0 {
		return ""
	}
	return bytesText(int64(*s))
}

func (s *size) Type() string { return "size" }

// rate is a number of bytes a second: "2 MB/s", "16 Mbit/s".
type rate int64

func (r *rate) Set(text string) error {
	text = strings.TrimSpace(text)
	amount, ok := strings.CutSuffix(text, "/s")
	if !ok && text != "0" {
		return errAmount
	}
	n, err := parseAmount(amount, bytesOf, bitsOf)
	if err == nil {
		*r = rate(n)
	}
	return err
}

func (r *rate) String() string {
	if *r == 0 {
		return ""
	}
	return bytesText(int64(*r)) + "/s"
}

func (r *rate) Type() string { return "rate" }

// share is a part of a whole: "90%".
type share float64

func (s *share) Set(text string) error {
	digits, ok := strings.CutSuffix(strings.TrimSpace(text), "%")
	n, err := strconv.ParseUint(strings.TrimSpace(digits), 10, 8)
	if !ok || err != nil || n < 1 || n > 100 {
		return errAmount
	}
	*s = share(n) / 100
	return nil
}

func (s *share) String() string {
	if *s == 0 {
		return ""
	}
	return strconv.FormatFloat(math.Round(float64(*s)*100), 'f', -1, 64) + "%"
}

func (s *share) Type() string { return "percent" }
