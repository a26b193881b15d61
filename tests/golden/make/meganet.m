% Run tiny networks of Meganet.m under GNU Octave: `octave-cli meganet.m ORIGINAL FOLDER`.
%
% Builds what cnnDriver.m builds, with widths 4-6, 8x8 images and three steps of h = 1, and trains it by sgd.m for
% three batches of four images. Convolution and pooling of MatConvNet are replaced by the functions below. Writes
% FOLDER/DYNAMIC.mat, which meganet.py makes golden tensors of.

1;

function [Y, dF] = vl_nnconv(X, F, B, varargin)
  % Correlation with zeros outside; with a cotangent its adjoints in X and F.
  global kernels
  given = numel(varargin) > 0 && isnumeric(varargin{1});
  [k, ~, in, out] = size(F);
  [h, w, ~, n] = size(X);
  r = (k - 1) / 2;
  padded = zeros(h + 2 * r, w + 2 * r, in, n);
  padded(r + (1:h), r + (1:w), :, :) = X;
  Y = zeros(h, w, out, n);
  dF = zeros(k, k, in, out);
  if given
    Z = reshape(permute(varargin{1}, [1 2 4 3]), [], out);
  end
  for p = 1:k
    for q = 1:k
      part = padded(p - 1 + (1:h), q - 1 + (1:w), :, :);
      part = reshape(permute(part, [1 2 4 3]), [], in);
      tap = reshape(F(p, q, :, :), in, out);
      if given
        dF(p, q, :, :) = reshape(part' * Z, 1, 1, in, out);
      else
        Y = Y + permute(reshape(part * tap, h, w, n, out), [1 2 4 3]);
      end
    end
  end
  if given
    Y = [];  % the adjoint in X is asked of vl_nnconvt
  end
end

function X = vl_nnconvt(Z, F, B, varargin)
  % The adjoint of vl_nnconv in X.
  flipped = permute(F(end:-1:1, end:-1:1, :, :), [1 2 4 3]);
  X = vl_nnconv(Z, flipped, []);
end

function Y = vl_nnpool(X, pool, varargin)
  % The mean over pool x pool pixels, and its adjoint for a cotangent.
  pool = pool(1);
  [h, w, c, n] = size(X);
  if isnumeric(varargin{1})
    Z = varargin{1};
    Y = zeros(h, w, c, n);
    for p = 1:pool
      for q = 1:pool
        Y(p:pool:h, q:pool:w, :, :) = Z / pool^2;
      end
    end
  else
    Y = zeros(h / pool, w / pool, c, n);
    for p = 1:pool
      for q = 1:pool
        Y = Y + X(p:pool:h, q:pool:w, :, :) / pool^2;
      end
    end
  end
end

function y = dct(x)
  % Columns by the orthonormal cosine transform of the signal package (for a preconditioner that SGD never asks for).
  n = rows(x);
  y = sqrt(2 / n) * cos(pi / n * (0:n - 1)' * ((0:n - 1) + 0.5)) * x;
  y(1, :) = y(1, :) / sqrt(2);
end

function found = contains(text, part)
  % MATLAB's function, which Octave 7 lacks.
  found = ! isempty(strfind(text, part));
end

function x = gather(x)
  % There is no GPU.
end

function order = randperm(n, varargin)
  % Images in their own order.
  order = 1:n;
end

function x = noted(x)
  % The projection of runCIFAR10.m, which notes the iterates.
  global iterates
  x = min(max(x, -1), 1);
  iterates{end + 1} = x;
end

function [net, regularizer] = network(dynamic, cin, nf, nt, h, side, n, alpha)
  % As in cnnDriver.m.
  precision = 'double';
  args = {'useGPU', 0, 'precision', precision};
  act = @reluActivation;
  blocks = cell(0, 1);
  reg = cell(0, 1);
  nL = batchNormLayer2([side side nf(1) n], 'isWeight', 1);
  K = convMCN([side side], [3 3 cin nf(1)]);
  blocks{end + 1} = NN({singleLayer(K, 'activation', act, 'normLayer', nL, 'storeInterm', true)}, args{:});
  reg{end + 1} = tikhonovReg(opDiag([ones(nTheta(K), 1); zeros(nTheta(nL), 1)]), alpha(2));
  for k = 1:numel(nf) - 1
    image = [side side] / 2^(k - 1);
    width = nf(k);
    parts = 1;
    if strcmp(dynamic, 'hamiltonian')
      width = width / 2;
      parts = 2;
    end
    K = convMCN(image, [3 3 width width]);
    nL = tvNormLayer([image width n], 'isWeight', 1);
    layer = doubleSymLayer(K, 'activation', act, 'normLayer1', nL, 'storeInterm', true);
    switch dynamic
      case 'parabolic'
        blocks{end + 1} = ResNN(layer, nt, h, args{:});
      case 'leapfrog'
        blocks{end + 1} = LeapFrogNN(layer, nt, h, args{:});
      case 'hamiltonian'
        blocks{end + 1} = DoubleHamiltonianNN(layer, layer, nt, h, args{:});
    end
    regD = repmat([ones(nTheta(K), 1); zeros(nTheta(nL), 1)], parts * nt, 1);
    reg{end + 1} = l1Reg(opTimeDer(nTheta(blocks{end}), nt, h), [alpha(3); alpha(2)], [], 'B2', opDiag(regD));
    nL = batchNormLayer2([image nf(k + 1) n], 'isWeight', 1);
    K = convMCN(image, [1, 1, nf(k), nf(k + 1)]);
    blocks{end + 1} = NN({singleLayer(K, 'activation', act, 'normLayer', nL)}, args{:});
    reg{end + 1} = tikhonovReg(opDiag([ones(nTheta(K), 1); zeros(nTheta(nL), 1)]), alpha(2));
    pool = 2;
    if k == numel(nf) - 1
      pool = image(1);
    end
    blocks{end + 1} = connector(opPoolMCN([image nf(k + 1)], pool));
    reg{end + 1} = tikhonovReg(opEye(0), alpha(2));
  end
  net = Meganet(blocks);
  regularizer = blockReg(reg, args{:});
end

function inside = isstep(net)
  % Whether a weight belongs to a time step; only such weights begin at their bounds.
  inside = [];
  for k = 1:numel(net.blocks)
    pde = ! isa(net.blocks{k}, 'NN') && ! isa(net.blocks{k}, 'connector');
    inside = [inside; repmat(pde, nTheta(net.blocks{k}), 1)];
  end
end

function norms = normalisations(net)
  norms = cell(0, 1);
  for k = 1:numel(net.blocks)
    if isa(net.blocks{k}, 'NN')
      layers = net.blocks{k}.layers;
      norms{end + 1} = layers{1}.normLayer;
    end
  end
end

function stats = running(net)
  stats = [];
  norms = normalisations(net);
  for k = 1:numel(norms)
    stats = [stats; norms{k}.runningMean(:); norms{k}.runningVar(:)];
  end
end

function f = objective(net, regularizer, classes, Y, C, alpha, features)
  op = opEye(classes * (features + 1));
  args = {'useGPU', 0, 'precision', 'double'};
  f = dnnBatchObjFctn(net, regularizer, softmaxLoss(), tikhonovReg(op, alpha(1), [], args{:}), Y, C, ...
                      'batchSize', 125, args{:});
end

function features = pooled(net, theta, Y)
  features = reshape(forwardProp(net, theta, Y), [], size(Y, 4));
end

given = argv();
addpath(genpath(given{1}));
global iterates
for name = {'parabolic', 'leapfrog', 'hamiltonian'}
  dynamic = name{1};
  randn('seed', 1);
  rand('seed', 1);
  [cin, nf, nt, h, side, n, classes] = deal(3, [4 6 6], 3, 1, 8, 4, 5);
  alpha = [2e-4; 2e-4; 2e-4];
  Y = randn(side, side, cin, 3 * n);
  labels = mod((0:3 * n - 1) * 7, classes) + 1;
  C = full(sparse(labels, 1:3 * n, 1, classes, 3 * n));
  [net, regularizer] = network(dynamic, cin, nf, nt, h, side, n, alpha);
  theta = initTheta(net);
  theta = 0.8 * theta / max(abs(theta)) + 0.1 * (rand(size(theta)) - 0.5);
  steps = find(isstep(net));
  theta(steps(1:29:end)) = sign(theta(steps(1:29:end)));  % at the bounds
  W = min(max(0.1 * randn(classes * (nf(end) + 1), 1), -.2), .2);
  x0 = [theta; W];
  norms = normalisations(net);
  for k = 1:numel(norms)
    c = norms{k}.nData(3);
    norms{k}.runningMean = 0.1 * randn(1, 1, c);
    norms{k}.runningVar = 0.5 + rand(1, 1, c);
  end
  stats = running(net);
  weights = reshape(W, classes, []);
  logits = weights * [pooled(net, theta, Y(:, :, :, 1:n)); ones(1, n)];

  opt = sgd('nesterov', false, 'ADAM', false, 'miniBatch', n, 'out', 0, 'lossTol', 0.01);
  opt.learningRate = 0.05;
  opt.momentum = 0.9;
  opt.maxEpochs = 1;
  opt.P = @noted;
  iterates = {};
  solve(opt, objective(net, regularizer, classes, Y, C, alpha, nf(end)), x0, []);
  states = [iterates{:}];
  trained_stats = running(net);
  x = states(:, end);
  weights = reshape(x(end - numel(W) + 1:end), classes, []);
  trained_logits = weights * [pooled(net, x(1:end - numel(W)), Y(:, :, :, 1:n)); ones(1, n)];

  % Losses and gradients of the same steps, with another network.
  [other, regularizer] = network(dynamic, cin, nf, nt, h, side, n, alpha);
  f = objective(other, regularizer, classes, Y, C, alpha, nf(end));
  losses = zeros(3, 1);
  fits = zeros(3, 1);
  for k = 1:3
    [losses(k), para, g] = eval(f, states(:, k), (k - 1) * n + (1:n));
    fits(k) = para.F;
    if k == 1
      gradient = g;
    end
  end
  save('-v6', fullfile(given{2}, [dynamic '.mat']), 'Y', 'labels', 'x0', 'stats', 'logits', 'states', ...
       'trained_stats', 'trained_logits', 'losses', 'fits', 'gradient');
end
