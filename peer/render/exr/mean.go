package exr

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strings"
)

// Weighted is a piece and the number of samples that it has.
type Weighted struct {
	Path    string
	Samples int
}

// rule is how the values that a channel has in several pieces become one.
type rule int

const (
	mean rule = iota
	// first takes the value of the first piece: Cycles stores it at the first sample of
	// all, and what pieces without that sample have there means nothing.
	first
	// ratio is for light that Cycles divides by the colour it fell on: both sums are
	// made before they are divided.
	ratio
)

// firstPasses are stored at the first sample, or are the same in every piece. A pass
// has one name up to Blender 4 and another from 5 on.
var firstPasses = []string{"Depth", "Z", "Position", "IndexOB", "IndexMA", "Object Index", "Material Index", "Debug Sample Count"}

// colours names the pass by which Cycles divides a pass of light.
var colours = map[string]string{
	"DiffDir": "DiffCol", "DiffInd": "DiffCol", "Diffuse Direct": "Diffuse Color", "Diffuse Indirect": "Diffuse Color",
	"GlossDir": "GlossCol", "GlossInd": "GlossCol", "Glossy Direct": "Glossy Color", "Glossy Indirect": "Glossy Color",
	"TransDir": "TransCol", "TransInd": "TransCol", "Transmission Direct": "Transmission Color", "Transmission Indirect": "Transmission Color",
	"SubsurfaceDir": "SubsurfaceCol", "SubsurfaceInd": "SubsurfaceCol",
}

// split cuts a channel's name "Layer.Pass.X" in three. The layer may have dots.
func split(channel string) (layer, pass, component string) {
	if i := strings.LastIndexByte(channel, '.'); i >= 0 {
		layer, component = channel[:i], channel[i+1:]
	}
	if i := strings.LastIndexByte(layer, '.'); i >= 0 {
		layer, pass = layer[:i], layer[i+1:]
	} else {
		layer, pass = "", layer
	}
	return layer, pass, component
}

// channelRule is the rule of one channel, and for a ratio the number of the other.
type channelRule struct {
	rule
	by int
}

func rules(channels []string) ([]channelRule, error) {
	out := make([]channelRule, len(channels))
	for i, name := range channels {
		layer, pass, component := split(name)
		switch {
		case strings.HasPrefix(pass, "Crypto"):
			// Its values are names with weights, of which each piece keeps a few.
			return nil, fmt.Errorf("pieces of samples with Cryptomatte (%s) cannot be merged: split the frame into tiles", name)
		case slices.Contains(firstPasses, pass):
			out[i].rule = first
		case colours[pass] != "":
			if by, ok := slices.BinarySearch(channels, layer+"."+colours[pass]+"."+component); ok {
				out[i] = channelRule{ratio, by}
			}
		}
	}
	return out, nil
}

// Mean writes the picture that has the samples of all the pieces to a new file. The
// first piece is the one with the first of the samples: depth and indices are taken
// from it. Light passes are exact where the pieces have the passes of colour too.
func Mean(to string, pieces []Weighted) (err error) {
	var in []*file
	defer func() {
		for _, f := range in {
			f.Close()
		}
	}()
	total := 0.0
	for i, p := range pieces {
		f, err := open(p.Path)
		if err != nil {
			return &PieceError{i, err}
		}
		in = append(in, f)
		total += float64(p.Samples)
		if f.width != in[0].width || f.height != in[0].height || !f.like(&in[0].header) {
			return &PieceError{i, malformed("its size or its passes are not those of the first piece")}
		}
	}
	if len(in) == 0 || total <= 0 {
		return fmt.Errorf("%w: there are no samples", ErrFormat)
	}
	by, err := rules(in[0].channels)
	if err != nil {
		return err
	}
	h := in[0].header
	// What one piece says of its rendering is not true of the whole.
	h.others = slices.DeleteFunc(slices.Clone(h.others), func(a attribute) bool {
		return strings.HasPrefix(a.name, "cycles.") || a.name == "RenderTime"
	})
	out, err := create(to, h)
	if err != nil {
		return err
	}
	defer func() { err = out.close(err) }()
	m := averager{rules: by, width: h.width, total: total, sums: make([]float64, h.width*len(by)), weights: make([]float64, h.width*len(by)), plain: make([]float64, h.width*len(by))}
	lines := make([][]byte, len(in))
	room := make([]byte, 8+h.line()) // one line at a time, whatever the number of pieces
	for y := range h.height {
		for i, f := range in {
			if lines[i], err = f.readLine(y, room); err != nil {
				return &PieceError{i, err}
			}
			m.add(lines[i], float64(pieces[i].Samples), i == 0)
		}
		out.writeLine(m.take(room[8:]))
	}
	return nil
}

// averager sums up one line.
type averager struct {
	rules []channelRule
	width int
	total float64
	sums  []float64
	// Of a ratio: the sums of what it is divided by, and those of its values as they
	// are, for where that is nothing.
	weights, plain []float64
}

func value(line []byte, i int) float64 {
	return float64(math.Float32frombits(binary.LittleEndian.Uint32(line[4*i:])))
}

func (m *averager) add(line []byte, samples float64, isFirst bool) {
	if isFirst {
		clear(m.sums)
		clear(m.weights)
		clear(m.plain)
	}
	for c, r := range m.rules {
		at := c * m.width
		sums := m.sums[at : at+m.width]
		switch r.rule {
		case first:
			if isFirst {
				for x := range sums {
					sums[x] = value(line, at+x)
				}
			}
		case ratio:
			weights, plain, other := m.weights[at:at+m.width], m.plain[at:at+m.width], r.by*m.width
			for x := range sums {
				v, w := value(line, at+x), samples*value(line, other+x)
				sums[x] += w * v
				weights[x] += w
				plain[x] += samples * v
			}
		default:
			for x := range sums {
				sums[x] += samples * value(line, at+x)
			}
		}
	}
}

// take writes the line that the sums make into b.
func (m *averager) take(b []byte) []byte {
	for c, r := range m.rules {
		at := c * m.width
		for x := at; x < at+m.width; x++ {
			v := m.sums[x]
			switch {
			case r.rule == mean:
				v /= m.total
			case r.rule == ratio && m.weights[x] != 0:
				v /= m.weights[x]
			case r.rule == ratio:
				v = m.plain[x] / m.total
			}
			binary.LittleEndian.PutUint32(b[4*x:], math.Float32bits(float32(v)))
		}
	}
	return b
}
