package main

import (
	"errors"
	"slices"
	"strings"
	"time"

	"vizpeer/peer"
)

var errHours = errors.New(`write days and times such as "mon-fri 08:00-19:00", "sat,sun 10:00-24:00" or "22:00-06:00" for every day`)

// days are the names of the days of the week, in the order of [time.Weekday].
var days = []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}

// parseHours reads a part of the week: days, if not all of them, and from when to
// when. A part that ends before it begins goes on past midnight.
func parseHours(text string) (h peer.Hours, err error) {
	fields := strings.Fields(strings.ToLower(text))
	switch len(fields) {
	case 1:
	case 2:
		if h.Days, err = parseDays(fields[0]); err != nil {
			return h, err
		}
	default:
		return h, errHours
	}
	from, to, ok := strings.Cut(fields[len(fields)-1], "-")
	if !ok {
		return h, errHours
	}
	if h.From, err = parseTime(from); err != nil {
		return h, err
	}
	if h.To, err = parseTime(to); err != nil {
		return h, err
	}
	if h.From == h.To || h.From == 24*time.Hour {
		return h, errHours // nothing, or everything: it could be meant either way
	}
	h.To %= 24 * time.Hour
	return h, nil
}

// parseDays reads "mon-fri", "sat,sun" and mixtures; "fri-mon" goes over the
// weekend.
func parseDays(text string) (on []time.Weekday, err error) {
	for part := range strings.SplitSeq(text, ",") {
		first, last, isRange := strings.Cut(part, "-")
		if !isRange {
			last = first
		}
		from, to := slices.Index(days, first), slices.Index(days, last)
		if from < 0 || to < 0 {
			return nil, errHours
		}
		for d := from; ; d = (d + 1) % len(days) {
			if !slices.Contains(on, time.Weekday(d)) {
				on = append(on, time.Weekday(d))
			}
			if d == to {
				break
			}
		}
	}
	return on, nil
}

// parseTime reads 08:00; 24:00 is the end of the day.
func parseTime(text string) (time.Duration, error) {
	if text == "24:00" {
		return 24 * time.Hour, nil
	}
	t, err := time.Parse("15:04", text)
	if err != nil || len(text) != len("15:04") {
		return 0, errHours
	}
	return time.Duration(t.Hour())*time.Hour + time.Duration(t.Minute())*time.Minute, nil
}

// caps are the limits that the settings ask for.
func (s *settings) caps() (peer.Caps, error) {
	up, down := int64(s.upload), int64(s.download)
	if len(s.capHours) == 0 {
		return peer.Caps{Up: up, Down: down}, nil
	}
	if up == 0 && down == 0 {
		return peer.Caps{}, usagef("--cap-hours %q needs --upload-cap or --download-cap: it says when they hold", strings.Join(s.capHours, ", "))
	}
	var caps peer.Caps
	for _, text := range s.capHours {
		h, err := parseHours(text)
		if err != nil {
			return caps, usagef("--cap-hours %q is not possible: %w", text, err)
		}
		h.Up, h.Down = up, down
		caps.Hours = append(caps.Hours, h)
	}
	return caps, nil
}
